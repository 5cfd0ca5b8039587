"""The weights of a run depend on its configuration alone: not on what was cached, nor on what was killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.config.compose import compose_run
from harness.training.checkpoints.checkpoint import load_checkpoint
from harness.training.result import EpochReport
from harness.training.train import train
from tests.helpers.recording_tracker import RecordingTracker
from tests.training.conftest import TINY

POLICIES = {
    "linear probe": ("finetune=linear_probe",),
    "partial 1": ("finetune=partial", "finetune.trainable_groups=1"),
    "partial 2": ("finetune=partial", "finetune.trainable_groups=2"),
    "partial 3": ("finetune=partial", "finetune.trainable_groups=3"),
    "full": ("finetune=full",),
    "norms only": ("finetune=norms_only",),
    "bitfit": ("finetune=bitfit", "finetune.batch_norm=frozen"),
    "adapted norms": ("finetune=linear_probe", "finetune.batch_norm=adapt"),
    "recalibrated norms": ("finetune=partial", "finetune.batch_norm=recalibrate"),
    "decay": ("finetune=full", "finetune.layer_decay=0.7", "finetune.reinit_groups=1"),
}
ON_IMAGES = {"full", "norms only", "bitfit", "adapted norms", "decay"}  # nothing is cached
SMALL = (
    "model=efficientnet_lite0",
    "model.image_size=64",  # so that its head convolution has more than one pixel to go over
    "augment.flip=true",
    "data.max_train_samples=80",
    "data.batch_size=32",
    "trainer.max_epochs=2",
    "trainer.precision=fp32",  # in which convolutions have a fast path
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def trained(policy: str, folder: Path, **how: Callable[..., object]) -> dict[str, torch.Tensor]:
    """Return the last checkpoint's weights."""
    config = compose_run([*TINY, "augment=none", *SMALL, *POLICIES[policy]])
    train(config, tracker=RecordingTracker(), checkpoint_dir=folder, **how)  # type: ignore[arg-type]
    return load_checkpoint(folder / "last.ckpt").state_dict


def train_and_die(policy: str, folder: Path, threads: int) -> None:
    """Train, but be killed in the second epoch."""
    torch.set_num_threads(threads)
    asked = iter(range(100))

    def stop_requested() -> bool:
        if (folder / "last.ckpt").is_file() and next(asked) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    trained(policy, folder, stop_requested=stop_requested)


def assert_equal_bits(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.slow
def test_a_partial_run_ends_alike_with_a_cold_cache_a_warm_one_and_stopped_in_between(
    cache: Path, tmp_path: Path
) -> None:
    cold = trained("partial 1", tmp_path / "cold")
    assert any(cache.iterdir())
    assert_equal_bits(cold, trained("partial 1", tmp_path / "warm"))

    shutil.rmtree(cache)

    def stop(report: EpochReport) -> str:
        return "interrupt" if report.epoch == 0 else "continue"

    trained("partial 1", tmp_path / "stopped", on_epoch=stop)  # the process that makes the cache
    assert_equal_bits(cold, trained("partial 1", tmp_path / "stopped"))


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_ends_alike_cold_warm_and_killed(policy: str, cache: Path, tmp_path: Path) -> None:
    cold = trained(policy, tmp_path / "cold")
    assert cache.is_dir() == (policy not in ON_IMAGES)
    assert_equal_bits(cold, trained(policy, tmp_path / "warm"))

    for name, is_cold_again in (("found warm", False), ("found cold", True)):
        shutil.rmtree(cache, ignore_errors=True)
        process = multiprocessing.get_context("spawn").Process(
            target=train_and_die, args=(policy, tmp_path / name, torch.get_num_threads())
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert (tmp_path / name / "last.ckpt").is_file(), "it has ended an epoch"
        if is_cold_again:
            shutil.rmtree(cache, ignore_errors=True)
        assert_equal_bits(cold, trained(policy, tmp_path / name))
