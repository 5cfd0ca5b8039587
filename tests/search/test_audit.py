"""The audit of a sweep's space: on rows made by hand, and at the end of a sweep."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from harness.config.compose import SweepPlan, compose_sweep
from harness.config.space import Choice, FloatRange, IntRange
from harness.search.executors.local import LocalExecutor
from harness.search.report.audit import audit
from harness.search.report.edges import edge_of
from harness.search.report.effects import judge_effects, trials_needed
from harness.search.report.findings import Finding
from harness.search.report.messages import show_result
from harness.search.study.locate import locate_sweep
from harness.search.study.trials import TrialRow
from harness.search.sweep import run_sweep
from tests.search.conftest import SmallSweep
from tests.search.helpers import fake_training
from tests.search.test_description import row
from tests.search.test_samplers import sweep_of

COMMAND = "harness sweep data=digits sweep.num_trials=8 sweep.storage=sqlite:////a/optuna.db"


# A space of its own, so that these tests do not follow each change of the default sweep.
QUESTION = (
    "data=digits",
    "sweep.num_trials=8",
    "sweep.compute_per_trial=null",
    "sweep.space.finetune.trainable_groups.high=2",
    "sweep.space.optim.lr.high=5e-3",
    "sweep.space.data.batch_size.values=[64, 128, 256]",
)


def plan_of(*overrides: str) -> SweepPlan:
    return compose_sweep([*QUESTION, *overrides])


def trial(number: int, score: float | None, params: dict[str, Any], **facts: Any) -> TrialRow:
    values = {"state": "complete", **facts}
    made = row(number, values.pop("state"), score)
    return TrialRow(**{**vars(made), "params": params, **values})


def settings(finetune: str = "linear_probe", **more: Any) -> dict[str, Any]:
    groups = {"finetune.trainable_groups": more.pop("groups", 1)} if finetune == "partial" else {}
    lr, batch = more.get("lr", 0.002), more.get("batch", 128)
    return {"finetune": finetune, **groups, "optim.lr": lr, "data.batch_size": batch}


def findings(rows: Sequence[TrialRow], plan: SweepPlan, **more: Any) -> dict[str, Finding]:
    found = audit(rows, plan, "mine", COMMAND, **more)
    return {finding.kind: finding for finding in found}


@pytest.mark.parametrize(
    ("dimension", "value", "end"),
    [
        (FloatRange(low=0.001, high=0.1, log=True), 0.1, "upper"),
        (FloatRange(low=0.001, high=0.1, log=True), 0.0805, "upper"),  # 4.7 % of the logarithm
        (FloatRange(low=0.001, high=0.1, log=True), 0.07, None),
        (FloatRange(low=0.001, high=0.1, log=True), 0.0012, "lower"),
        (FloatRange(low=0.0, high=1.0), 0.04, "lower"),
        (FloatRange(low=0.0, high=1.0), 0.06, None),
        (IntRange(low=1, high=3), 2, None),
        (IntRange(low=1, high=3), 3, "upper"),
        (Choice(values=[256, 64, 128]), 64, "lower"),
        (Choice(values=[256, 64, 128]), 128, None),
        (Choice(values=["a", "b"]), "a", None),
        (Choice(values=[False, True]), False, None),
    ],
)
def test_where_an_edge_begins(dimension: Any, value: Any, end: str | None) -> None:
    assert edge_of(dimension, value) == end


def test_one_command_widens_every_range_at_whose_edge_the_winner_lies() -> None:
    best = trial(3, 0.9, settings("partial", groups=2, batch=64))
    found = findings([trial(0, 0.5, settings()), best], plan_of())["edge"]

    assert "trial 3, the best, is at the edge of 2 ranges" in found.sentence
    assert "finetune.trainable_groups=2 (the upper end of 1 to 2, where finetune=partial)" in found.sentence
    words = shlex.split(found.command or "")
    assert "--extend" in words
    assert words.count("sweep.num_trials=12") == 1
    assert "sweep.num_trials=8" not in words
    assert not any(word.startswith("sweep.storage") for word in words)
    assert "sweep.name=mine" in words  # the default name would be another: it holds a digest of the space
    asked = [word for word in words[2:] if word != "--extend"]
    widened = compose_sweep([*QUESTION, *asked]).sweep.space
    assert widened["finetune.trainable_groups"].high == 3  # type: ignore[union-attr]
    assert widened["data.batch_size"].values == [32, 64, 128, 256]  # type: ignore[union-attr]
    assert widened["optim.lr"].high == 0.005  # type: ignore[union-attr]


def test_a_range_that_can_go_no_further_is_not_to_be_extended() -> None:
    groups = "sweep.space.finetune.trainable_groups"
    plan = plan_of("finetune=partial", f"{groups}={{type: int, low: 1, high: 8}}")  # the model has 8
    found = findings([trial(0, 0.9, settings("partial", groups=8))], plan)["edge"]

    assert "it can go no further" in found.sentence
    assert found.command is None


def test_a_trial_that_ties_with_the_winner_within_the_range_is_named() -> None:
    rows = [trial(0, 0.90, settings(lr=0.005)), trial(1, 0.89, settings(lr=0.002))]
    found = findings(rows, plan_of(), tied=frozenset({0, 1}))["edge"]
    assert "trial 1, tied with it, not so" in found.sentence


def test_a_winner_within_its_ranges_and_an_empty_sweep_give_no_edge() -> None:
    assert "edge" not in findings([trial(0, 0.9, settings())], plan_of())
    assert "edge" not in findings([trial(0, None, settings(lr=0.005), state="infeasible")], plan_of())
    assert audit([trial(0, 0.9, settings(), state="running")], plan_of(), "mine", COMMAND) == []


def test_an_arm_that_saw_less_data_is_named_with_the_command_for_equal_ones() -> None:
    rows = [trial(0, 0.9, settings("partial")), trial(1, 0.5, settings("full"))]
    rule = "sweep.rules=[{when: {finetune: full}, overrides: ['data.max_train_samples=200']}]"
    found = findings(rows, plan_of(rule))["unequal"]

    assert "full 200 training images" in found.sentence
    assert "partial all training images" in found.sentence
    words = shlex.split(found.command or "")
    equal = compose_sweep([*words[2:], rule])
    assert "unequal" not in findings(rows, plan_of(rule), num_train=180)  # fewer than either may have
    for arm in ("partial", "full"):
        assert equal.compose_trial(settings(arm)).data.max_train_samples is None


def test_arms_are_compared_by_their_compute_where_it_was_counted() -> None:
    def rows(full: float) -> list[TrialRow]:
        costs = {"partial": 2.0, "full": full}
        return [
            trial(i, 0.9, settings(arm), costs={"train_pflop": c, "train_images": 400.0})
            for i, (arm, c) in enumerate(costs.items())
        ]

    plan = plan_of("sweep.rules=[{when: {finetune: full}, overrides: ['data.max_train_samples=200']}]")
    assert "unequal" not in findings(rows(2.1), plan)
    unequal = findings(rows(8.0), plan)["unequal"]
    assert "partial 400 images, 2 PFLOP; full 400 images, 8 PFLOP a trial" in unequal.sentence
    assert "sweep.compute_per_trial=8" in shlex.split(unequal.command or "")
    assert "data.max_train_samples=null" in shlex.split(unequal.command or "")
    equal = plan_of("sweep.compute_per_trial=8")  # an arm that its passes stopped: no command mends it
    assert findings(rows(8.0), equal)["unequal"].command is None


def test_an_arm_whose_trials_were_all_pruned_is_named() -> None:
    rows = [trial(n, 0.9, settings()) for n in range(3)]
    rows += [trial(3, 0.2, settings("full"), state="pruned", epochs_done=1, max_epochs=4)]
    found = findings(rows, plan_of())["pruned_early"]

    assert "no trial with finetune=full came to its end" in found.sentence
    assert "after 1 epoch at most of 4" in found.sentence
    alone = compose_sweep(shlex.split(found.command or "")[2:])
    assert alone.sweep.pruner.kind == "none"
    assert "finetune" not in alone.sweep.space
    assert alone.base.finetune.kind == "full"


def test_an_arm_with_few_trials_gets_more_of_them() -> None:
    rows = [trial(n, 0.9, settings()) for n in range(6)] + [trial(6, 0.8, settings("full"))]
    found = [one for one in audit(rows, plan_of(), "mine", COMMAND) if one.kind == "few_trials"]

    assert [one.sentence.split(" ")[0] for one in found] == ["finetune=partial", "finetune=full"]
    assert "1 trial with a score, another value of finetune 6" in found[1].sentence
    more = compose_sweep(shlex.split(found[1].command or "")[2:]).sweep
    assert more.enqueue == [{"finetune": "full"}] * 2
    assert more.num_trials == 10


def test_an_arm_without_a_score_is_named_with_the_reason() -> None:
    rows = [trial(n, 0.9, settings()) for n in range(3)]
    rows += [trial(3, None, settings("full"), state="infeasible", reason="out of memory")]
    assert "(1 infeasible: out of memory)" in findings(rows, plan_of())["no_score"].sentence


# ── settings that made no difference ──────────────────────────────────────────────────────────────

SPACE: dict[str, Any] = {
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "kind": {"type": "choice", "values": ["a", "b"]},
}


def simulated(count: int, shift: float, seed: int = 0) -> list[TrialRow]:
    """Return trials whose score is 0.8 ± 0.05, plus `shift` standard deviations where kind is b."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        kind = "ab"[number % 2]
        score = 0.8 + 0.05 * float(rng.normal() + shift * (kind == "b"))
        rows.append(trial(number, score, {"x": float(rng.random()), "kind": kind}))
    return rows


def verdicts(rows: Sequence[TrialRow]) -> dict[str, str]:
    return {effect.path: effect.verdict for effect in judge_effects(rows, sweep_of("random", SPACE))}


def test_eight_trials_tell_nothing() -> None:
    assert verdicts(simulated(8, 0.0)) == {"x": "unknown", "kind": "unknown"}
    found = audit([trial(n, 0.5 + n / 100, settings()) for n in range(8)], plan_of(), "mine", COMMAND)
    told = next(one for one in found if one.kind == "cannot_tell")
    assert "cannot be told from 8 complete trials" in told.sentence
    assert "optim.lr" in told.sentence


def test_many_trials_tell_what_mattered_and_what_did_not() -> None:
    assert verdicts(simulated(600, 1.0)) == {"x": "none", "kind": "some"}
    assert verdicts(simulated(600, 0.0)) == {"x": "none", "kind": "none"}


def test_an_interval_over_trials_of_a_sampler_that_learns_says_so() -> None:
    rng = np.random.default_rng(0)
    rows = [
        trial(n, float(rng.random()), settings(("full", "linear_probe", "partial")[n % 3], lr=rng.random()))
        for n in range(900)
    ]
    for sampler, is_said in (("tpe", True), ("random", False)):
        sentence = findings(rows, plan_of(f"sweep.sampler.kind={sampler}"))["no_difference"].sentence
        assert (f"those of {sampler} are not" in sentence) == is_said


def test_a_setting_that_matters_is_seldom_said_not_to() -> None:
    """Two trials of which one is better with 65 % are 0.545 standard deviations apart."""
    shift = 0.545
    wrong = [verdicts(simulated(100, shift, seed))["kind"] == "none" for seed in range(200)]
    assert np.mean(wrong) <= 0.05


def test_a_number_of_trials_that_is_said_to_be_enough_mostly_is() -> None:
    needed = trials_needed(2)
    assert needed is not None
    right = [verdicts(simulated(needed, 0.0, seed))["kind"] == "none" for seed in range(200)]
    assert np.mean(right) == pytest.approx(0.8, abs=0.1)


def test_an_effect_in_the_middle_of_a_range_is_seen() -> None:
    rows = [trial(n, 1 - abs(n / 60 - 0.5), {"x": n / 60, "kind": "ab"[n % 2]}) for n in range(60)]
    assert verdicts(rows)["x"] == "some"


def test_a_value_that_was_hardly_tried_leaves_the_question_open() -> None:
    rows = [one for one in simulated(300, 0.0) if one.params["kind"] == "a" or one.number < 4]
    assert verdicts(rows)["kind"] == "unknown"


def test_equal_scores_and_a_thousand_values_are_judged_too() -> None:
    assert (
        verdicts([trial(n, 0.5, {"x": n / 300, "kind": "ab"[n % 2]}) for n in range(300)])["kind"] == "none"
    )
    many = {"kind": {"type": "choice", "values": [f"v{n}" for n in range(1000)]}}
    rows = [trial(n, n / 1000, {"kind": f"v{n}"}) for n in range(500)]
    assert [one.verdict for one in judge_effects(rows, sweep_of("random", many))] == ["unknown"]


# ── in a sweep ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_sweep_prints_its_audit_and_the_command_that_it_names_extends_it(small_sweep: SmallSweep) -> None:
    size = "sweep.space={data.batch_size: {type: choice, values: [64, 128]}}"  # the best is at an edge of two
    first = small_sweep.run(size, "sweep.num_trials=1")
    (edge,) = [finding for finding in first.findings if finding.kind == "edge"]
    words = shlex.split(edge.command or "")[2:]
    assert words[:2] == ["--config-dir", str(small_sweep.configs)]
    assert "--extend" in words
    plan = compose_sweep([word for word in words[2:] if word != "--extend"], small_sweep.configs)
    plan = replace(plan, sweep=plan.sweep.model_copy(update={"num_trials": 2}))  # fewer than it asks for
    executor = LocalExecutor(run_trial=fake_training.run_trial, preload=fake_training.PRELOAD)
    console = Console(file=small_sweep.output, width=200)
    second = run_sweep(plan, console=console, executor=executor, extend=True)

    output = small_sweep.output.getvalue()
    assert f"audit: {edge.sentence}" in output
    assert edge.command in output
    assert "is extended after 1 trials: sweep.space.data.batch_size.values" in output
    assert len(second.rows) == 2
    assert second.name == first.name

    # Unequal compute stands below the best trial, and not once more in the audit.
    unequal = Finding("unequal", "the arms differ", "harness sweep equal")
    console = Console(file=StringIO(), width=200)
    show_result(console, locate_sweep(plan), replace(second, findings=[unequal, edge]))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    at = next(place for place, line in enumerate(lines) if line.startswith("best: "))
    assert lines[at + 1 : at + 3] == ["but: the arms differ", "     harness sweep equal"]
    assert sum("the arms differ" in line for line in lines) == 1
    assert f"audit: {edge.sentence}" in lines
