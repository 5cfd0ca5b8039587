"""Trials that a sweep begins with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from pydantic import ValidationError

from harness.config.compose import CONFIG_DIR, compose_sweep
from harness.config.sweep import SweepConfig
from harness.search.study import trials as studies
from harness.search.suggest.space import suggest
from harness.search.suggest.starting_points import enqueue_points
from tests.search.conftest import SMALL, SmallSweep

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACE: dict[str, Any] = {
    "finetune": {"type": "choice", "values": ["full", "partial"]},
    "finetune.trainable_groups": {"type": "int", "low": 1, "high": 3, "when": {"finetune": "partial"}},
    "optim.lr": {"type": "float", "low": 0.001, "high": 1},
    "data.batch_size": {"type": "choice", "values": [64, 128]},
}


def sweep_of(*points: dict[str, Any], kind: str = "tpe") -> SweepConfig:
    return SweepConfig.model_validate({"space": SPACE, "enqueue": list(points), "sampler": {"kind": kind}})


@pytest.mark.parametrize(
    ("point", "fault"),
    [
        ({"optim.lrr": 0.1}, "point 1 of enqueue: 'optim.lrr' is not in the space; did you mean 'optim.lr'"),
        ({"optim.lr": 2}, "optim.lr=2 is outside of the space"),
        ({"optim.lr": True}, "optim.lr=true is outside"),
        ({"data.batch_size": 96}, "data.batch_size=96 is outside"),
        ({"data.batch_size": 64.0}, "data.batch_size=64.0 is outside"),
        ({"finetune.trainable_groups": 1.5, "finetune": "partial"}, "trainable_groups=1.5 is outside"),
        ({"finetune.trainable_groups": 1, "finetune": "full"}, "is there only where finetune=partial"),
        ({"finetune.trainable_groups": 1}, "is there only where finetune=partial"),
    ],
)
def test_a_point_outside_of_the_space_is_named(point: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        sweep_of(point)


def test_more_points_than_trials_are_refused() -> None:
    with pytest.raises(ValidationError, match="enqueue has 2 points: num_trials=1 is too few"):
        SweepConfig.model_validate({"space": SPACE, "enqueue": [{}, {}], "num_trials": 1})


def test_points_are_enqueued_once_and_new_ones_later() -> None:
    first, second = {"optim.lr": 1}, {"finetune": "partial", "finetune.trainable_groups": 2}
    study = studies.create_study(optuna.storages.InMemoryStorage(), "mine", sweep_of())
    for sweep in (sweep_of(first), sweep_of(first), sweep_of(first, second, first), sweep_of(second)):
        enqueue_points(study, sweep)

    assert [trial.system_attrs["fixed_params"] for trial in study.trials] == [{}, second, {}]


def test_a_corrected_point_takes_the_place_of_the_one_it_corrects(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "harness")
    wrong, right, other = {"optim.lr": 0.0045}, {"optim.lr": 0.003}, {"optim.lr": 0.5}
    study = studies.create_study(optuna.storages.InMemoryStorage(), "mine", sweep_of())
    enqueue_points(study, sweep_of(other, wrong))
    assert study.ask().number == 0  # the first has begun
    begun = sweep_of(right, wrong).model_copy(update={"num_trials": 2})
    enqueue_points(study, begun)
    assert "trial 0 began at optim.lr=0.5, which enqueue has no more: it goes on" in caplog.text
    assert "no trial is left to begin at optim.lr=0.003: raise sweep.num_trials" in caplog.text
    enqueue_points(study, sweep_of(other, right))

    assert [trial.system_attrs["fixed_params"] for trial in study.trials] == [other, right]
    assert "trial 1 begins at optim.lr=0.003, no more at optim.lr=0.0045" in caplog.text


def test_a_withdrawn_point_leaves_its_trial_to_the_sampler() -> None:
    space = {"data.batch_size": {"type": "choice", "values": [32, 64]}}
    point = {"data.batch_size": 64}
    values = {"space": space, "sampler": {"kind": "grid"}, "num_trials": 2}
    sweep = SweepConfig.model_validate(values)
    study = studies.create_study(optuna.storages.InMemoryStorage(), "mine", sweep)
    enqueue_points(study, SweepConfig.model_validate({**values, "enqueue": [point]}))
    enqueue_points(study, sweep)
    chosen = []
    for _ in range(2):
        asked = study.ask()
        own = studies.load_study_for_trial(study._storage, "mine", sweep, asked.number)
        chosen.append(suggest(optuna.trial.Trial(own, asked._trial_id), sweep.space)["data.batch_size"])
        own.tell(asked.number, 0.5)

    assert sorted(chosen) == [32, 64]  # the grid, whole


def test_points_that_come_late_stay_within_the_budget() -> None:
    points: list[dict[str, Any]] = [{"optim.lr": 1}, {"optim.lr": 0.5}]
    study = studies.create_study(optuna.storages.InMemoryStorage(), "mine", sweep_of())
    study.ask()
    for num_trials in (2, 2, 3, 9):
        enqueue_points(study, sweep_of(*points).model_copy(update={"num_trials": num_trials}))
        assert len(study.trials) == min(num_trials, 3)


@pytest.mark.parametrize("kind", ["tpe", "gp", "cmaes", "qmc", "nsgaii", "random"])
def test_the_sampler_completes_a_point(kind: str) -> None:
    sweep = sweep_of({"optim.lr": 1}, {"finetune": "partial", "data.batch_size": 128}, kind=kind)
    study = studies.create_study(optuna.storages.InMemoryStorage(), "mine", sweep)
    enqueue_points(study, sweep)
    chosen = []
    for _ in range(2):
        asked = study.ask()
        own = studies.load_study_for_trial(study._storage, "mine", sweep, asked.number)
        chosen.append(suggest(optuna.trial.Trial(own, asked._trial_id), sweep.space))
        own.tell(asked.number, 0.5)

    assert chosen[0]["optim.lr"] == 1
    assert isinstance(chosen[0]["optim.lr"], float)
    assert chosen[0]["finetune"] in ("full", "partial")
    assert (chosen[1]["finetune"], chosen[1]["data.batch_size"]) == ("partial", 128)
    assert chosen[1]["finetune.trainable_groups"] in (1, 2, 3)


def test_a_value_that_the_user_fixes_leaves_the_points_too(tmp_path: Path) -> None:
    configs = Path(shutil.copytree(CONFIG_DIR, tmp_path / "configs"))
    points = "  enqueue: [{optim.lr: 0.001, seed: 1}, {optim.lr: 0.002, seed: 2}]\n"
    space = SMALL + "    seed: {type: int, low: 0, high: 9}\n" + points
    (configs / "sweep" / "small.yaml").write_text(space)
    plan = compose_sweep(["sweep=small", "optim.lr=2e-3"], configs)

    assert plan.sweep.enqueue == [{"seed": 2}]  # the other cannot be tried with this rate


def test_a_sweep_begins_with_its_points(small_sweep: SmallSweep) -> None:
    file = small_sweep.configs / "sweep" / "small.yaml"
    file.write_text(file.read_text() + "  enqueue: [{optim.lr: 0.004}, {optim.lr: 0.009}]\n")
    result = small_sweep.run("sweep.num_trials=3")
    again = small_sweep.run("sweep.num_trials=3")

    assert [row.params["optim.lr"] for row in result.rows][:2] == [0.004, 0.009]
    assert [row.state for row in again.rows] == ["complete"] * 3
