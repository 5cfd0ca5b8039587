"""The best configurations are trained again with fresh seeds, and what that says."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from harness.config.compose import compose_sweep
from harness.config.schema import TrackingConfig
from harness.config.sweep import SweepConfig
from harness.errors import ConfigError, SweepError
from harness.search.coordinator.completion import has_ended, num_wanted, search_has_ended
from harness.search.database.storage import storage_url
from harness.search.executors.local import LocalExecutor
from harness.search.report.leaderboard import leaderboard_csv, leaderboard_table
from harness.search.report.parent_run import plan_facts
from harness.search.report.status import read_status
from harness.search.report.verdict import judge
from harness.search.study import keys
from harness.search.study.locate import locate_sweep, open_study
from harness.search.study.trials import TrialRow, best_row, ranked
from harness.search.sweep import SweepResult, replicate_sweep
from harness.search.trial.replicates import missing_replicates
from harness.tracking import names
from harness.tracking.choice import newest_sweep, read_sweep
from tests.search.conftest import SmallSweep
from tests.search.helpers import fake_training
from tests.search.test_progress import SWEEP, row


def asking(num_trials: int = 3, **replicate: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {**SWEEP.model_dump(), "num_trials": num_trials, "replicate": replicate}
    )


def rows_of(scores: list[float], fresh: dict[int, list[float]] | None = None) -> list[TrialRow]:
    """Trials with these scores, then the replicates of some of them with seeds from 1."""
    rows = [row(number, "complete", score=score, seed=0) for number, score in enumerate(scores)]
    for number, again in (fresh or {}).items():
        for seed, score in enumerate(again, start=1):
            rows.append(row(len(rows), "complete", score=score, seed=seed, replicate_of=number))
    return rows


# ── which replicates are wanted ───────────────────────────────────────────────────────────────────


def test_the_best_are_replicated_with_the_same_fresh_seeds() -> None:
    rows = [*rows_of([0.5, 0.9, 0.8]), row(3, "pruned", score=0.95, seed=4), row(4, "failed")]

    assert missing_replicates(rows, asking(5, top=2, seeds=2)) == [(1, 5), (2, 5), (1, 6), (2, 6)]
    assert missing_replicates(rows, asking(5)) == []


def test_replicates_that_exist_count_however_they_ended() -> None:
    rows = [*rows_of([0.5, 0.9], {1: [0.8]}), row(3, "failed", seed=2, replicate_of=1)]

    assert missing_replicates(rows, asking(2, seeds=2)) == []
    assert missing_replicates(rows, asking(2, seeds=4)) == [(1, 3), (1, 4)]


def test_a_sweep_ends_with_its_last_replicate() -> None:
    sweep, search = asking(2, seeds=1), rows_of([0.5, 0.9])
    running = [*search, row(2, "running", replicate_of=1, seed=1)]
    done = rows_of([0.5, 0.9], {1: [0.8]})

    assert [search_has_ended(rows, sweep) for rows in (search[:1], search, running)] == [False, True, True]
    assert [has_ended(rows, sweep) for rows in (search, running, done)] == [False, False, True]
    assert [num_wanted(rows, sweep) for rows in ([], search, running, done)] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"space": {"seed": {"type": "int", "low": 0, "high": 9}}}, "take `seed` out of the space"),
        ({"second_objective": {"metric": "latency_ms"}}, "no trial is the best"),
    ],
)
def test_a_sweep_that_cannot_be_replicated_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SweepConfig.model_validate({**SWEEP.model_dump(), "replicate": {"seeds": 3}, **change})


# ── what they say ─────────────────────────────────────────────────────────────────────────────────


def test_without_replicates_the_sentence_says_that_luck_is_not_known() -> None:
    verdict = judge(rows_of([0.5, 0.9]), asking())

    assert verdict.sentence.startswith("trial 1 (lr=0.123), val/accuracy 0.9000, the best of 2 single runs")
    assert "harness replicate" in verdict.sentence
    assert (verdict.noise, verdict.tied, verdict.replicates) == (None, frozenset(), {})


def test_one_replicate_gives_no_interval() -> None:
    assert "one fresh seed gives no interval" in judge(rows_of([0.5, 0.9], {1: [0.8]}), asking()).sentence


def test_the_mean_over_fresh_seeds_leaves_out_the_score_that_was_chosen() -> None:
    verdict = judge(rows_of([0.6, 0.99, 0.885], {1: [0.88, 0.90, 0.92]}), asking())

    # On the scale of the logit, ln 9 ± 4.303 × 0.02 / √3 / (0.9 × 0.1); prediction: 4.303 × 0.02 × √(1 + 1/3)
    assert "val/accuracy 0.9000 over 3 fresh seeds (95 % interval 0.8382 to 0.9399)" in verdict.sentence
    assert "0.99" not in verdict.sentence
    assert verdict.noise == pytest.approx(0.02)
    assert verdict.margin == pytest.approx(0.0994, abs=1e-4)
    assert verdict.tied == {2}
    assert "the trial itself had 0.9900" in verdict.notes[0]
    assert verdict.notes[1].startswith("trial 2 is within what a seed changes (0.0994")


def test_fresh_seeds_may_reverse_the_order() -> None:
    rows = rows_of([0.90, 0.95], {1: [0.80, 0.81, 0.82], 0: [0.90, 0.91, 0.93]})
    best = best_row(rows, "maximize")

    assert best is not None
    assert best.number == 0
    assert [one.number for one in ranked(rows, "maximize")][:2] == [0, 1]
    assert "0.1033 better than trial 1" in judge(rows, asking()).sentence


def test_a_lead_that_is_equal_with_every_seed_allows_no_test() -> None:
    verdict = judge(rows_of([0.95, 0.94], {0: [0.75, 0.5], 1: [0.5, 0.25]}), asking())

    assert "0.2500 better than trial 1 with every seed, which allows no test" in verdict.sentence
    assert verdict.tied == {1}


@pytest.mark.parametrize(("second", "is_found"), [([0.71, 0.72, 0.70], True), ([0.89, 0.93, 0.87], False)])
def test_two_replicated_configurations_are_compared_seed_by_seed(second: list[float], is_found: bool) -> None:
    verdict = judge(rows_of([0.95, 0.94], {0: [0.90, 0.91, 0.92], 1: second}), asking())

    assert ("more than seeds explain" in verdict.sentence) == is_found
    assert ("no difference that 3 seeds can show; about" in verdict.sentence) != is_found
    assert (1 in verdict.tied) != is_found


def test_a_loss_is_better_if_it_is_lower() -> None:
    sweep = SweepConfig.model_validate(
        {**asking().model_dump(), "metric": "val/loss", "direction": "minimize"}
    )
    verdict = judge(rows_of([0.2, 0.3, 0.9], {0: [0.28, 0.30, 0.32]}), sweep)

    assert verdict.best is not None
    assert verdict.best.number == 0
    assert verdict.tied == {1}


def test_the_leaderboard_marks_ties_and_shows_means() -> None:
    rows, sweep = rows_of([0.6, 0.99, 0.885], {1: [0.88, 0.90, 0.92]}), asking()
    output = io.StringIO()
    Console(file=output, width=100).print(leaderboard_table(rows, sweep, judge(rows, sweep)))
    lines = output.getvalue().splitlines()

    assert [line.split()[0] for line in lines if "complete" in line] == ["1", "2", "0"]
    assert any("0.9000 (3)" in line for line in lines)
    assert any("≈0.8850" in line for line in lines)
    marks = [
        line.rpartition(",")[2] for line in leaderboard_csv(rows, sweep, judge(rows, sweep)).splitlines()
    ]
    assert marks == ["tied_with_best", "False", "True", *["False"] * 4]


# ── the whole way ─────────────────────────────────────────────────────────────────────────────────


def replicate(sweep: SmallSweep, **asked: Any) -> SweepResult:
    return replicate_sweep(
        sweep.name,
        storage_url(str(sweep.runs), sweep.database),
        asked=asked,
        config_dir=sweep.configs,
        console=Console(file=sweep.output, force_terminal=False, width=200),
        executor=LocalExecutor(run_trial=fake_training.run_trial, preload=fake_training.PRELOAD),
    )


def test_a_sweep_replicates_its_best_trials_once(small_sweep: SmallSweep) -> None:
    scores = [0.5, 0.95, 0.9, *(0.80, 0.90, 0.82, 0.92, 0.84, 0.93)]
    small_sweep.behave(scores={str(number): score for number, score in enumerate(scores)})
    asked = ["sweep.replicate.top=2", "sweep.replicate.seeds=3"]
    asked += ["sweep.pruner.kind=median", "sweep.pruner.startup_trials=0"]
    for _ in range(2):
        result = small_sweep.run(*asked)

    rows = small_sweep.rows()
    assert [(one.replicate_of, one.seed) for one in rows[3:]] == [(n, s) for s in (1, 2, 3) for n in (1, 2)]
    assert [one.state for one in rows[3:]] == ["complete"] * 6  # none is pruned
    assert all(one.params == rows[one.replicate_of].params for one in rows[3:] if one.replicate_of)
    assert result.best is not None
    assert result.best.number == 2  # trial 1 was lucky
    status = read_status(small_sweep.study())
    assert (status.num_trials, status.state) == (9, "complete")
    # The run store says the same.
    tracking = TrackingConfig(dir=str(small_sweep.runs))
    parent = newest_sweep(tracking)
    assert parent is not None
    recorded = read_sweep(tracking, parent)
    assert recorded.best is not None
    assert (recorded.best.trial, recorded.num_judged) == (2, 3)
    assert recorded.ranked[0] is recorded.best
    assert parent.metrics[names.NOISE + "val/accuracy"] == pytest.approx(judge(rows, SWEEP).noise)


@pytest.mark.slow
def test_the_command_replicates_an_answered_sweep_and_adds_what_is_missing(small_sweep: SmallSweep) -> None:
    small_sweep.run("sweep.target=0.1")  # its first trial reaches that
    replicate(small_sweep, seeds=2)
    result = replicate(small_sweep, seeds=3)

    assert [(one.replicate_of, one.seed) for one in result.rows] == [(None, 0), (0, 1), (0, 2), (0, 3)]
    assert result.outcome == "complete"


def test_an_unfinished_search_is_not_replicated(small_sweep: SmallSweep) -> None:
    small_sweep.run()
    more = compose_sweep(small_sweep.overrides("sweep.num_trials=9"), small_sweep.configs)
    small_sweep.study().set_user_attr(keys.PLAN, plan_facts(more))

    with pytest.raises(SweepError, match="has run 3 of its 9 trials"):
        replicate(small_sweep, seeds=2)


def test_a_sweep_without_a_complete_trial_is_not_replicated(small_sweep: SmallSweep) -> None:
    small_sweep.behave(diverge=[0, 1, 2])
    small_sweep.run()

    with pytest.raises(SweepError, match="no complete trial that could be trained again"):
        replicate(small_sweep, seeds=2)


@pytest.mark.slow
def test_a_search_that_goes_on_replicates_its_new_best(small_sweep: SmallSweep) -> None:
    small_sweep.behave(scores={"0": 0.9, "1": 0.5, "2": 0.5, "4": 0.99})
    small_sweep.run("sweep.replicate.seeds=1")
    result = small_sweep.run("sweep.replicate.seeds=1", "sweep.num_trials=4")

    assert [one.replicate_of for one in result.rows] == [None, None, None, 0, None, 4]
    assert "sweep.replicate.seeds=1 gives no interval" in small_sweep.output.getvalue()


@pytest.mark.parametrize("asked", [{"seeds": 0}, {"seeds": 3, "top": 0}, {"seeds": -1}])
def test_a_wrong_number_of_seeds_is_refused(small_sweep: SmallSweep, asked: dict[str, int]) -> None:
    open_study(locate_sweep(compose_sweep(small_sweep.overrides(), small_sweep.configs)))

    with pytest.raises(ConfigError, match=r"--seeds 0|replicate\.(seeds|top)"):
        replicate(small_sweep, **asked)
