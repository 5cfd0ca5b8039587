"""The runner of the record's recipe: what it starts, what it makes of the results."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from experiments.performance import matmul, speedrun
from harness.config.compose import compose_run
from harness.tracking.store import open_store
from harness.training.machine import Machine

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


def test_every_seed_is_a_run_of_its_own_whose_scores_are_read_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands = []

    def train(command: list[str]) -> int:
        commands.append(command[3:])
        overrides = command[4:]
        config = compose_run(overrides)
        tracker = open_store(config.tracking).start_run(config.tracking.run_name, "cifar10", {})
        tracker.log_summary({"test/accuracy": 0.9 + config.seed / 100, "test/accuracy_no_tta": 0.8})
        tracker.finish("FINISHED")
        return 0

    monkeypatch.setattr(subprocess, "call", train)
    monkeypatch.setattr(speedrun, "matmul_flops", lambda device, dtype: 1e9)
    monkeypatch.setattr(speedrun, "prepare_process", lambda threads, keep_memory: None)
    output = tmp_path / "runs.json"
    places = [f"tracking.dir='{tmp_path}'", "trainer.max_epochs=1"]
    assert speedrun.main(["--seeds", "2", "4", "--output", str(output), "--", *places]) == 0
    assert [(command[0], command[-1]) for command in commands] == [("train", "seed=2"), ("train", "seed=4")]
    assert all("recipe=speedrun" in command and "trainer.max_epochs=1" in command for command in commands)
    runs = json.loads(output.read_text())["runs"]
    assert [run["seed"] for run in runs] == [2, 4]
    assert [run["test_accuracy"] for run in runs] == pytest.approx([0.92, 0.94])


def test_a_seed_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "call", lambda command: 130)
    monkeypatch.setattr(speedrun, "matmul_flops", lambda device, dtype: 1e9)
    monkeypatch.setattr(speedrun, "prepare_process", lambda threads, keep_memory: None)
    assert speedrun.main([]) == 130
