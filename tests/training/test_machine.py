"""What `auto` means, and what a machine cannot do."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

from harness.config.schema import TrainerConfig
from harness.errors import ConfigError
from harness.training.devices import machine
from harness.training.devices.machine import machine_at_hand, prepare_process, resolve_machine


def test_auto_is_resolved_to_something_that_exists() -> None:
    resolved = resolve_machine(TrainerConfig())
    torch.zeros(1, device=resolved.device)
    assert resolved.precision in ("fp32", "bf16", "fp16")


def test_a_cpu_gets_bf16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = TrainerConfig(device="cpu")
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: True)
    assert resolve_machine(cpu).precision == "bf16"
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: False)
    assert resolve_machine(cpu).precision == "fp32"


def test_a_cpu_runs_grouped_convolutions_in_fp32_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, depthwise = nn.Sequential(nn.Conv2d(4, 4, 3)), nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: True)
    assert resolve_machine(TrainerConfig(device="cpu"), dense).precision == "bf16"
    assert resolve_machine(TrainerConfig(device="cpu"), depthwise).precision == "fp32"
    assert resolve_machine(TrainerConfig(device="cpu", precision="bf16"), depthwise).precision == "bf16"


def test_a_missing_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="this machine has none"):
        resolve_machine(TrainerConfig(device="cuda"))


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp16 is for GPUs"):
        resolve_machine(TrainerConfig(device="cpu", precision="fp16"))


@pytest.mark.parametrize(("has_cuda", "visible"), [(False, ""), (True, "1")])
def test_without_cuda_nobody_looks_for_it_again(
    monkeypatch: pytest.MonkeyPatch, has_cuda: bool, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)

    prepare_process(None, keep_memory=False)

    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


@pytest.mark.parametrize(("device", "precision"), [("cuda", "auto"), ("cuda", "fp16"), ("auto", "fp16")])
def test_a_trained_model_is_used_on_what_is_at_hand_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: Any, precision: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = TrainerConfig(device=device, precision=precision)
    with pytest.raises(ConfigError):
        resolve_machine(asked)

    with caplog.at_level("WARNING"):
        assert machine_at_hand(asked, nn.Linear(1, 1)) == resolve_machine(TrainerConfig())
    assert f"trainer.precision={precision}, which this machine does not have" in caplog.text
