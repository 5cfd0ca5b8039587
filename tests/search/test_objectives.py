"""Two objectives, and constraints on what a trial costs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from optuna.trial import TrialState
from pydantic import ValidationError

from harness.config.objectives import parse_constraint
from harness.config.sweep import SweepConfig
from harness.search.report.leaderboard import importance_figure, importances_of, leaderboard_table
from harness.search.report.pareto import pareto_figure, pareto_front
from harness.search.report.verdict import judge
from harness.search.study import trials as studies
from harness.search.study.trials import TrialRow
from harness.search.suggest.constraints import tell_costs
from harness.search.suggest.pruners import report_score
from harness.search.suggest.space import suggest
from tests.search.conftest import SmallSweep
from tests.search.test_progress import row
from tests.search.test_samplers import RANGES, new_study, run_trial, sweep_of

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACE = {"seed": {"type": "int", "low": 0, "high": 9}}
LATENCY = {"second_objective": {"metric": "latency_ms"}}


def config(**changes: Any) -> SweepConfig:
    return SweepConfig.model_validate({"space": SPACE, **changes})


# ── constraints ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("params_millions <= 5", 5.0, 5.1),
        (" latency_ms<=2.5 ", 0.1, 3.0),
        ("train_seconds >= 1e2", 100.0, 99.0),
        ("params_millions >= 0", 0.0, -1.0),
    ],
)
def test_a_constraint_is_what_it_says(text: str, inside: float, outside: float) -> None:
    constraint = parse_constraint(text)

    assert constraint.excess(inside) <= 0 < constraint.excess(outside)
    assert parse_constraint(str(constraint)) == constraint


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("latency <= 2", "unknown cost; did you mean 'latency_ms'"),
        ("latency_ms < 2", "write it like 'params_millions <= 5'"),
        ("latency_ms <= two", "cannot read the constraint 'latency_ms <= two'"),
    ],
)
def test_an_unreadable_constraint_is_named(text: str, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        config(constraints=[text])


def test_excesses_are_shares_so_that_units_do_not_matter() -> None:
    assert parse_constraint("params_millions <= 10").excess(15) == 0.5
    assert parse_constraint("latency_ms <= 0.002").excess(0.003) == pytest.approx(0.5)


@pytest.mark.parametrize("changes", [LATENCY, {"constraints": ["latency_ms <= 1"]}])
def test_cma_es_is_refused_what_it_cannot_learn(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="cmaes knows neither constraints nor a second objective"):
        config(sampler={"kind": "cmaes"}, **changes)


@pytest.mark.slow
def test_an_infeasible_trial_is_shown_and_never_the_best(small_sweep: SmallSweep) -> None:
    file = small_sweep.configs / "sweep" / "small.yaml"
    file.write_text(file.read_text() + '  constraints: ["latency_ms <= 2", "params_millions <= 5"]\n')
    small_sweep.behave(scores={"0": 0.9, "1": 0.5}, latency_ms={"0": 3.0})
    result = small_sweep.run("sweep.num_trials=2")

    assert [row.state for row in result.rows] == ["infeasible", "complete"]
    assert result.rows[0].reason == "latency_ms <= 2 does not hold (3)"
    assert result.rows[0].score == pytest.approx(0.9 * 0.95)
    assert result.best == result.rows[1]
    assert result.rows[1].costs["latency_ms"] == 1.0


@pytest.mark.slow
def test_what_is_known_before_training_spares_it(small_sweep: SmallSweep) -> None:
    file = small_sweep.configs / "sweep" / "small.yaml"
    file.write_text(file.read_text() + '  constraints: ["params_millions <= 0.01"]\n')
    result = small_sweep.run("sweep.num_trials=1")

    assert [row.state for row in result.rows] == ["infeasible"]
    assert (result.rows[0].reason or "").startswith("params_millions <= 0.01 does not hold (0.0")
    assert not (small_sweep.trial_folder(0) / "account.txt").exists()


@pytest.mark.parametrize("kind", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "nsgaii"])
def test_samplers_learn_a_constraint(kind: str) -> None:
    """The score grows with `decay`, the latency too: without the constraint, all would go to 1."""

    def mean_proposal(**changes: Any) -> float:
        sweep = sweep_of(kind, RANGES, sampler={"population_size": 5}, **changes)
        study = new_study(sweep)
        for _ in range(8 if kind == "gp" else 60):
            asked = study.ask()
            own = studies.load_study_for_trial(study._storage, "mine", sweep, asked.number)
            trial = type(asked)(own, asked._trial_id)
            decay = suggest(trial, sweep.space)["decay"]
            assert isinstance(decay, float)
            tell_costs(trial, sweep, {"latency_ms": 1 + decay})
            own.tell(trial, decay)
        learned = [trial.params["decay"] for trial in study.trials[4 if kind == "gp" else 30 :]]
        return sum(learned) / len(learned)

    assert mean_proposal(constraints=["latency_ms <= 1.3"]) < mean_proposal() - 0.2


# ── two objectives ────────────────────────────────────────────────────────────────────────────────


def rows_of(*points: tuple[float, float]) -> list[TrialRow]:
    return [
        row(number, "complete", score=score, costs={"latency_ms": cost})
        for number, (score, cost) in enumerate(points)
    ]


@pytest.mark.parametrize(
    ("changes", "front"),
    [
        ({}, []),
        (LATENCY, [4, 0, 2]),
        ({"second_objective": {"metric": "latency_ms", "direction": "maximize"}}, [4]),
        ({**LATENCY, "metric": "val/loss", "direction": "minimize"}, [2]),
    ],
)
def test_the_front_holds_what_nothing_beats_in_both(changes: dict[str, Any], front: list[int]) -> None:
    rows = rows_of((0.8, 2.0), (0.7, 2.0), (0.6, 1.0), (0.8, 2.0), (0.9, 5.0))

    assert [row.number for row in pareto_front(rows, config(**changes))] == front


def test_the_front_is_of_complete_feasible_trials() -> None:
    infeasible = row(1, "infeasible", score=0.99, costs={"latency_ms": 0.1})
    pruned = row(2, "pruned", score=0.99, costs={"latency_ms": 0.1})

    assert pareto_front([*rows_of((0.5, 1.0)), infeasible, pruned], config(**LATENCY))[0].number == 0


def test_the_front_is_seen() -> None:
    rows = rows_of((0.8, 2.0), (0.7, 2.0), (0.6, 1.0))
    figure = pareto_figure(rows, config(**LATENCY))
    table = leaderboard_table(rows, config(**LATENCY), judge(rows, config(**LATENCY)))

    assert figure is not None
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[1.0, 2.0]]  # type: ignore[arg-type]
    assert list(table.columns[0].cells) == ["0*", "1", "2*"]
    assert list(table.columns[3].cells) == ["2", "2", "1"]
    assert pareto_figure([], config(**LATENCY)) is None
    assert pareto_figure(rows, config()) is None


@pytest.mark.parametrize("kind", ["tpe", "gp", "qmc", "nsgaii", "random"])
def test_every_other_sampler_goes_on_with_two_objectives_and_pruned_trials(kind: str) -> None:
    """TPE alone asks for *the* direction as soon as a pruned trial has a score, which two of them lack."""
    sweep = sweep_of(kind, RANGES, **LATENCY, sampler={"population_size": 5})
    study = new_study(sweep)
    for _ in range(3):
        pruned = study.ask()
        report_score(study, pruned._trial_id, 1, 0.2)
        study.tell(pruned, state=TrialState.PRUNED)
    for _ in range(7):
        run_trial(study, sweep, lambda chosen: [chosen["lr"], chosen["decay"]])  # type: ignore[arg-type, return-value]

    assert [row.state for row in studies.read_rows(study)] == ["pruned"] * 3 + ["complete"] * 7
    assert importance_figure(importances_of(study), "val/accuracy") is not None


def test_a_pruner_and_a_second_objective_work_together(small_sweep: SmallSweep) -> None:
    file = small_sweep.configs / "sweep" / "small.yaml"
    objective = "  second_objective: {metric: latency_ms}\n"
    file.write_text(
        file.read_text().replace("pruner: {kind: none}", "pruner: {startup_trials: 2}") + objective
    )
    small_sweep.behave(
        scores={"0": 0.8, "1": 0.9, "2": 0.1, "3": 0.7}, latency_ms={"0": 2.0, "1": 5.0, "2": 0.1, "3": 4.0}
    )
    result = small_sweep.run("sweep.num_trials=4", "sweep.sampler.startup_trials=2")
    written = json.loads((small_sweep.runs / "sweeps" / "small" / "sweep.json").read_text())

    assert [row.state for row in result.rows] == ["complete", "complete", "pruned", "pruned"]
    assert result.best == result.rows[1]
    assert [entry["trial"] for entry in written["front"]] == [1, 0]
    assert written["front"][0]["latency_ms"] == 5.0
    assert "* on the Pareto front" in small_sweep.output.getvalue()
