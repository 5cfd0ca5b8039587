"""How many trials run at a time."""

from __future__ import annotations

import os
from typing import Any

import pytest

from harness.config.schema import RunConfig, TrainerConfig
from harness.config.sweep import SweepConfig
from harness.errors import ConfigError
from harness.search.coordinator.slots import count_gpus, resolve_slots
from harness.search.trial.attempt import set_up_process
from harness.search.trial.spec import pin_devices
from harness.training.devices import machine

SPACE = {"seed": {"type": "int", "low": 0, "high": 9}}


def sweep(**changes: Any) -> SweepConfig:
    return SweepConfig.model_validate({"space": SPACE, **changes})


@pytest.mark.parametrize(
    ("changes", "cores", "device", "gpus", "expected"),
    [
        ({}, 2, "cpu", 0, (2, 1)),
        ({}, 16, "cpu", 0, (4, 4)),
        ({}, 1, "cpu", 0, (1, 1)),
        ({}, 6, "cpu", 0, (4, 1)),
        ({"slots": 2}, 16, "cpu", 0, (2, 8)),
        ({"threads_per_trial": 8}, 16, "cpu", 0, (2, 8)),
        ({}, 16, "cuda", 4, (4, 4)),
        ({"slots": 8}, 16, "cuda", 4, (8, 2)),
        ({}, 8, "mps", 0, (1, 8)),
    ],
)
def test_what_is_auto_fills_the_machine(
    changes: dict[str, Any], cores: int, device: str, gpus: int, expected: tuple[int, int]
) -> None:
    slots = resolve_slots(sweep(**changes), None, cores, device, gpus)

    assert (slots.count, slots.threads) == expected
    assert slots.warning is None


@pytest.mark.parametrize("cores", range(1, 9))
@pytest.mark.parametrize("slots", ["auto", 1, 3, 20])
@pytest.mark.parametrize("gpus", [0, 4])
def test_the_cores_are_never_overloaded_by_our_own_choice(cores: int, slots: Any, gpus: int) -> None:
    chosen = resolve_slots(sweep(slots=slots), None, cores, "cuda" if gpus else "cpu", gpus)

    assert chosen.count * chosen.threads <= cores
    is_lowered = slots != "auto" and slots > cores
    assert (chosen.warning is not None) == (is_lowered or (slots == "auto" and gpus > cores))


@pytest.mark.parametrize(
    ("changes", "cores", "gpus", "said"),
    [
        ({"threads_per_trial": 4}, 8, 4, "2 of 4 GPUs stay idle, as there are cores for 2 trial(s) of 4"),
        ({}, 4, 8, "4 of 8 GPUs stay idle, as there are cores for 4 trial(s) of 1"),
        ({"devices_per_trial": 2}, 8, 5, "1 of 5 GPUs stay idle: sweep.devices_per_trial=2 does not"),
        ({}, 8, 8, None),
        ({"slots": 1}, 8, 8, None),  # as was asked for
    ],
)
def test_gpus_that_stay_idle_are_said(
    changes: dict[str, Any], cores: int, gpus: int, said: str | None
) -> None:
    warning = resolve_slots(sweep(**changes), None, cores, "cuda", gpus).warning

    assert warning is None if said is None else said in (warning or "")


@pytest.mark.parametrize(
    ("visible", "shown", "expected"),
    [
        ("MIG-a1,MIG-b2, MIG-c3", 1, 3),  # CUDA shows the first of them alone
        ("MIG-GPU-5c89/1/0,MIG-GPU-5c89/2/0", 1, 2),
        ("MIG-a1", 1, 1),
        ("0,1", 2, 2),
        ("GPU-8a1b,GPU-77cd", 2, 2),
        ("", 4, 4),
        ("MIG-a1,MIG-b2", 0, 0),
    ],
)
def test_the_parts_of_a_gpu_are_a_place_each(visible: str, shown: int, expected: int) -> None:
    assert count_gpus(visible, shown) == expected


def test_a_trials_part_of_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for slot in (0, 1):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a1,MIG-b2")
        indices = resolve_slots(sweep(), None, 8, "cuda", 2).device_indices(slot)
        assert indices is not None
        pin_devices(indices)
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == ["MIG-a1", "MIG-b2"]


def test_what_the_user_fixed_twice_is_done_with_a_warning() -> None:
    chosen = resolve_slots(sweep(slots=4, threads_per_trial=2), None, 2, "cpu", 0)

    assert (chosen.count, chosen.threads) == (4, 2)
    assert "slower" in (chosen.warning or "")
    assert resolve_slots(sweep(), 2, 8, "cpu", 0).threads == 2  # trainer.threads counts as fixed


def test_slots_share_the_gpus_evenly() -> None:
    chosen = resolve_slots(sweep(slots=4), None, 16, "cuda", 2)

    assert [chosen.device_indices(slot) for slot in range(4)] == [[0], [1], [0], [1]]
    assert resolve_slots(sweep(), None, 4, "cpu", 0).device_indices(0) is None


@pytest.mark.parametrize("gpus", [4, 5])
def test_a_trial_over_several_gpus_takes_neighbours(gpus: int) -> None:
    chosen = resolve_slots(sweep(devices_per_trial=2), None, 16, "cuda", gpus)

    assert [chosen.device_indices(slot, 2) for slot in range(chosen.count)] == [[0, 1], [2, 3]]


def test_a_trial_over_several_processes_counts_a_core_for_each() -> None:
    slots = [resolve_slots(sweep(devices_per_trial=2), None, cores, "cpu", 0) for cores in (8, 2, 1)]

    assert [(chosen.count, chosen.threads) for chosen in slots] == [(4, 2), (1, 2), (1, 1)]


def test_more_gpus_per_trial_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="this machine shows 2 GPU"):
        resolve_slots(sweep(devices_per_trial=4), None, 16, "cuda", 2)


def test_a_trials_gpus_are_picked_from_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,6,7")
    pin_devices([2, 3])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6,7"


def test_a_trial_takes_the_threads_that_the_slots_were_counted_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both keys set: if the trial read its own, two slots of one thread would run four threads."""
    taken: list[int | None] = []
    monkeypatch.setattr(machine, "prepare_process", lambda threads, keep_memory: taken.append(threads))
    base = RunConfig(trainer=TrainerConfig(threads=2))
    slots = resolve_slots(sweep(slots=2, threads_per_trial=1), base.trainer.threads, 2, "cpu", 0)
    set_up_process(base, slots.threads)
    set_up_process(base, None)
    assert taken == [1, 2]
