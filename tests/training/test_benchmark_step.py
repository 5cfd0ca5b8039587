"""Training steps on made-up images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.config.schema import RunConfig
from harness.training import benchmark_step
from harness.training.benchmark_step import StepBenchmark


def run_of(batch_size: int = 40, **sections: Any) -> StepBenchmark:
    base: dict[str, Any] = {
        "model": {"kind": "lenet"},
        "finetune": {"kind": "full"},
        "data": {"kind": "digits"},
    }
    base["data"]["batch_size"] = batch_size
    return StepBenchmark(RunConfig.model_validate({**base, **sections}), (12, 12), 3)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"augment": {"flip": "alternating", "crop_padding": 2, "cutmix_alpha": 1.0}},
        {"model": {"kind": "speed_cnn"}, "optim": {"kind": "muon"}},
        {"model": {"kind": "efficientnet_lite0", "image_size": 32}, "finetune": {"kind": "linear_probe"}},
    ],
)
def test_it_trains_what_the_run_would_train(sections: dict[str, Any]) -> None:
    run = run_of(8, **sections)
    before = {name: p.detach().clone() for name, p in run._module.named_parameters()}
    rate, share = run.time_steps(0.0)

    changed = {n for n, p in run._module.named_parameters() if not torch.equal(p, before[n])}
    assert rate > 0
    assert 0 < share <= 1.1
    assert changed
    assert changed <= {n for n, p in run._module.named_parameters() if p.requires_grad}
    assert run.batch_size == 8


def test_a_batch_that_takes_too_long_is_cut_and_its_memory_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([1000, 1000 + 14 * 10])  # bytes: after 2 images, and after 16
    monkeypatch.setattr(benchmark_step, "_own_memory", lambda: next(taken))
    monkeypatch.setattr(benchmark_step, "LONGEST_STEP_S", 0.0)
    run = run_of(batch_size=40)

    assert run.batch_size == 16
    assert run.memory == 1000 + 38 * 10
