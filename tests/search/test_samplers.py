"""Who proposes trials, when each of them is a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from pydantic import ValidationError

from harness.config.sweep import SweepConfig
from harness.search.study import trials as studies
from harness.search.suggest.space import suggest

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

KINDS = ["tpe", "gp", "cmaes", "qmc", "nsgaii", "random", "grid"]
RANGES = {
    "lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "decay": {"type": "float", "low": 0.0, "high": 1.0},
}
ARMS: dict[str, Any] = {
    "finetune": {"type": "choice", "values": ["probe", "partial", "full"]},
    "groups": {"type": "int", "low": 1, "high": 2, "when": {"finetune": "partial"}},
    "batch": {"type": "choice", "values": [64, 128]},
}


def sweep_of(kind: str, space: dict[str, Any], **changes: Any) -> SweepConfig:
    options = {"kind": kind, "startup_trials": 3, **changes.pop("sampler", {})}
    return SweepConfig.model_validate({"space": space, "sampler": options, **changes})


def space_for(kind: str) -> dict[str, Any]:
    return ARMS if kind == "grid" else {**ARMS, **RANGES}


def new_study(sweep: SweepConfig) -> optuna.Study:
    return studies.create_study(optuna.storages.InMemoryStorage(), "mine", sweep)


def run_trial(study: optuna.Study, sweep: SweepConfig, score: Callable[[dict[str, Any]], float]) -> Any:
    """Do as a trial's process does: nothing but the database connects it with others."""
    asked = study.ask()
    own = studies.load_study_for_trial(study._storage, study.study_name, sweep, asked.number)
    trial = optuna.trial.Trial(own, asked._trial_id)
    chosen = suggest(trial, sweep.space)
    own.tell(trial, score(chosen))
    return chosen


def quality(chosen: dict[str, Any]) -> float:
    return -((chosen.get("lr", 0.03) - 0.03) ** 2) - (chosen.get("decay", 0.8) - 0.8) ** 2


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_gives_the_same_trials_and_another_seed_others(kind: str) -> None:
    def trials(seed: int) -> list[Any]:
        sweep = sweep_of(kind, space_for(kind), sampler={"seed": seed, "population_size": 5}, num_trials=8)
        study = new_study(sweep)
        return [run_trial(study, sweep, quality) for _ in range(6)]

    first = trials(0)
    assert trials(0) == first
    assert trials(1) != first
    assert len({str(chosen) for chosen in first}) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_conditional_paths_are_proposed_in_their_arm_alone(kind: str) -> None:
    sweep = sweep_of(kind, space_for(kind), num_trials=8)
    study = new_study(sweep)
    for _ in range(8):
        chosen = run_trial(study, sweep, quality)
        assert ("groups" in chosen) == (chosen["finetune"] == "partial")


@pytest.mark.parametrize("kind", ["tpe", "gp", "cmaes", "nsgaii"])
def test_what_learns_comes_closer_than_its_first_trials(kind: str) -> None:
    sweep = sweep_of(kind, RANGES, num_trials=40, sampler={"population_size": 5})
    study = new_study(sweep)
    found = [quality(run_trial(study, sweep, quality)) for _ in range(15 if kind == "gp" else 40)]

    assert max(found[5:]) > max(found[:5])
    assert sum(found[-5:]) > sum(found[:5])


def test_cma_es_keeps_learning_when_an_arm_comes_late() -> None:
    """Optuna's own would take the first arm's conditional range for one of all trials, and give up."""
    space = {**RANGES, "arm": ARMS["finetune"], "extra": {**RANGES["decay"], "when": {"arm": "partial"}}}
    sweep = sweep_of("cmaes", space, num_trials=60, sampler={"startup_trials": 1, "population_size": 5})
    study = new_study(sweep)
    for _ in range(30):
        run_trial(study, sweep, quality)
    generations = [trial.system_attrs.get("cma:generation") for trial in study.trials]

    assert generations[0] is None
    assert generations[-1] == 5  # every six trials but the random first


def test_a_quasi_random_sweep_fills_the_space_evenly_whoever_asks_when() -> None:
    sweep = sweep_of("qmc", RANGES, num_trials=16)
    study = new_study(sweep)
    asked = [study.ask() for _ in range(16)]  # sixteen processes at a time, each after the others' start
    values = []
    for trial in reversed(asked):
        own = studies.load_study_for_trial(study._storage, "mine", sweep, trial.number)
        values.append(suggest(optuna.trial.Trial(own, trial._trial_id), sweep.space)["decay"])

    assert sorted(int(float(value) * 16) for value in values) == list(range(16))


def test_a_grid_is_walked_once_whatever_runs_at_a_time_and_was_enqueued() -> None:
    sweep = sweep_of("grid", ARMS, num_trials=9, enqueue=[{"finetune": "partial"}])
    study = new_study(sweep)
    study.enqueue_trial({"finetune": "partial"})
    chosen = []
    for trial in reversed([study.ask() for _ in range(9)]):
        own = studies.load_study_for_trial(study._storage, "mine", sweep, trial.number)
        chosen.append(suggest(optuna.trial.Trial(own, trial._trial_id), sweep.space))

    assert chosen[-1]["finetune"] == "partial"  # trial 0; the sampler chose the rest of it
    assert len({tuple(sorted(point.items())) for point in chosen[:-1]}) == 8


@pytest.mark.parametrize(
    ("kind", "changes", "fault"),
    [
        ("grid", {"space": RANGES}, "cannot try every value of lr: list some"),
        ("grid", {"space": ARMS, "num_trials": 9}, "ends after 8 trials: set num_trials=8"),
        ("grid", {"space": {"seed": {"type": "int", "low": 0, "high": 99_999}}}, "more than 10,000 points"),
        ("cmaes", {"space": ARMS}, "needs a range"),
    ],
)
def test_a_space_that_a_sampler_cannot_take_is_refused(
    kind: str, changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValidationError, match=fault):
        sweep_of(kind, changes.pop("space"), **changes)


def test_failed_and_pruned_trials_stand_in_no_samplers_way() -> None:
    for kind in KINDS:
        sweep = sweep_of(kind, space_for(kind), num_trials=8)
        study = new_study(sweep)
        for state in (TrialState.FAIL, TrialState.PRUNED, TrialState.FAIL, TrialState.PRUNED):
            study.tell(study.ask(), state=state)
        for _ in range(4):
            run_trial(study, sweep, quality)
        assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 4
