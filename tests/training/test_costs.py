"""What a model costs, as constraints and second objectives see it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import psutil
import pytest
import torch

from harness.config.objectives import COSTS
from harness.config.schema import RunConfig
from harness.training.costs import count_params_millions, peak_memory
from harness.training.result import EpochReport

Run = Callable[..., tuple]
Config = Callable[..., RunConfig]


def test_a_run_hands_back_and_records_what_it_cost(run: Run, tiny_config: Config) -> None:
    config = tiny_config("trainer.max_epochs=2")
    result, tracker = run(config)

    assert set(result.costs) == set(COSTS)
    assert result.costs["params_millions"] == 0.062006  # as the run's own count of what trains
    assert count_params_millions(config) == 0.062006
    assert result.costs["latency_ms"] > 0
    assert {name: tracker.summary[name] for name in COSTS} == result.costs
    assert tracker.summary["peak_memory_gib"] > 0.1


def test_a_frozen_backbone_counts_in_full(tiny_config: Config) -> None:
    config = tiny_config("model=efficientnet_lite0", "finetune=linear_probe")

    assert count_params_millions(config) == pytest.approx(3.385, abs=0.01)  # 4.65 with ImageNet's head


def test_an_interrupted_run_costs_all_of_its_epochs(run: Run, tiny_config: Config) -> None:
    config = tiny_config("trainer.max_epochs=3")
    stopped, _ = run(config, on_epoch=lambda report: "interrupt" if report.epoch == 0 else "continue")
    seen: list[EpochReport] = []
    resumed, tracker = run(config, on_epoch=lambda report: seen.append(report) or "continue")

    assert stopped.costs == {}
    assert len(seen) == 2
    epochs = [tracker.epochs[epoch]["epoch_seconds"] for epoch in range(3)]
    assert resumed.costs["train_seconds"] == pytest.approx(sum(epochs))


@pytest.mark.slow
def test_the_peak_of_memory_holds_what_was_allocated() -> None:
    before = peak_memory(torch.device("cpu"))["peak_memory_gib"]
    assert before * 2**30 >= psutil.Process().memory_info().rss * 0.9
    held = np.ones((int((before + 0.2) * 2**30) // 8,))  # more than there ever was
    after = peak_memory(torch.device("cpu"))["peak_memory_gib"]
    assert after >= before + 0.19
    assert after < before + held.nbytes / 2**30 + 0.2
