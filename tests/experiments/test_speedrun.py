"""The runner of the record's recipe: what it starts, what it makes of the results."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.performance import matmul, speedrun
from harness.config.compose import compose_run
from harness.config.schema import TrackingConfig
from harness.tracking.store import open_store
from harness.training.checkpoints.checkpoint import SECTION
from harness.training.checkpoints.checkpoint_io import AtomicCheckpointIO
from harness.training.devices.machine import Machine

CPU = Machine(torch.device("cpu"), "fp32")


def finished(seed: int, accuracy: float, seconds: float) -> speedrun.SpeedRun:
    return speedrun.SpeedRun(seed, "0123abcd", accuracy, accuracy - 0.01, seconds, 800e9)


def test_the_ratio_is_that_of_the_issue() -> None:
    """784 s at 800 GFLOP/s were 2.16 of the published run's operations; ≤ 1.5 is about nine minutes."""
    assert finished(0, 0.94, 784.0).ratio == pytest.approx(2.16, abs=0.01)
    assert finished(0, 0.94, 9 * 60.0).ratio == pytest.approx(1.49, abs=0.01)


def test_the_table_ends_with_means() -> None:
    lines = speedrun.describe([finished(0, 0.941, 400.0), finished(5, 0.938, 600.0)], CPU).splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["0", "94.10%", "93.10%"], ["5", "93.80%", "92.80%"]]
    assert "mean of 2: test accuracy 93.95%, 500 s, ratio 1.38" in lines[3]


def test_matmul_rate_is_operations_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(matmul.time, "perf_counter", lambda: float(next(ticks)))
    assert (
        matmul.matmul_flops(torch.device("cpu"), torch.float32, side=8) == 2 * 8**3
    )  # every product takes "a second"


class FakeTraining:
    """Stands for `harness train`: records a run, or goes on with one, and may be killed."""

    def __init__(self, codes: list[int]) -> None:
        self.codes = codes  # of the calls to come
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str]) -> int:
        arguments = command[4:]
        self.commands.append(arguments)
        code = self.codes.pop(0)
        if arguments[0] == "--resume":
            tracker = open_store(TrackingConfig(dir=arguments[3])).start_run(
                None, "", {}, run_id=arguments[1]
            )
        else:
            config = compose_run(arguments)
            tracker = open_store(config.tracking).start_run(config.tracking.run_name, "cifar10", {})
            tracker.log_params(config.to_dict())
        if code == 0:
            tracker.log_summary({"test/accuracy": 0.93, "test/accuracy_no_tta": 0.92})
        tracker.finish("FINISHED" if code == 0 else "KILLED")
        return code


@pytest.fixture
def speedrun_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made_store: None) -> Callable[..., int]:
    """Call the runner with a stand-in for the training."""
    monkeypatch.setattr(speedrun, "matmul_flops", lambda device, dtype: 1e9)
    monkeypatch.setattr(speedrun, "prepare_process", lambda threads, keep_memory: None)

    def call(training: FakeTraining, *seeds: str, more: tuple[str, ...] = ()) -> int:
        monkeypatch.setattr(subprocess, "call", training)
        places = [f"tracking.dir='{tmp_path / 'mlruns'}'", "trainer.max_epochs=1"]
        arguments = ["--seeds", *seeds, "--output", str(tmp_path / "runs.json"), "--", *places, *more]
        return speedrun.main(arguments)

    return call


def test_every_seed_is_a_run_of_its_own_whose_scores_are_read_back(
    speedrun_with: Callable[..., int], tmp_path: Path
) -> None:
    training = FakeTraining([0, 0])
    assert speedrun_with(training, "2", "4") == 0
    assert [command[-1] for command in training.commands] == ["seed=2", "seed=4"]
    assert all("recipe=speedrun" in command for command in training.commands)
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert [(run["seed"], run["test_accuracy"], run["matmul_flops"]) for run in runs] == [
        (2, 0.93, 1e9),
        (4, 0.93, 1e9),
    ]


def test_repeated_it_goes_on_and_trains_no_finished_seed_again(
    speedrun_with: Callable[..., int], tmp_path: Path
) -> None:
    assert speedrun_with(FakeTraining([0, 130]), "0", "1") == 130
    again = FakeTraining([0])
    assert speedrun_with(again, "0", "1") == 0
    [command] = again.commands
    assert command[0] == "--resume"
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    assert runs[1]["run_id"] == command[1]


def test_another_configuration_is_another_run(speedrun_with: Callable[..., int]) -> None:
    assert speedrun_with(FakeTraining([130]), "0") == 130
    other = FakeTraining([0])
    assert speedrun_with(other, "0", more=("optim.lr=0.06",)) == 0
    assert "optim.lr=0.06" in other.commands[0]


def test_a_resumed_run_pays_for_its_earlier_epochs_too(tmp_path: Path) -> None:
    assert speedrun._epoch_seconds(tmp_path) == 0.0
    history = [{"epoch_seconds": 300.0}, {"epoch_seconds": 310.0}]
    content = {"state_dict": {}, SECTION: {}, "callbacks": {"EpochRecorder": {"history": history}}}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "last.ckpt")
    assert speedrun._epoch_seconds(tmp_path) == 610.0
