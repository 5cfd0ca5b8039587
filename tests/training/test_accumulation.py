"""An optimiser step over several batches is a step over one large batch, also at the end of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.errors import ConfigError
from harness.training.checkpoints.checkpoint import load_checkpoint, load_raw
from harness.training.commands.dry_run import describe_run
from harness.training.commands.lr_curve import trace_rates
from tests.training.conftest import stop_after

Config = Callable[..., RunConfig]
Run = Callable[..., tuple]
# 75 images: batches of 16, 16, 16, 16, 11; or of 32, 32, 11.
HOW = (
    "trainer.precision=fp32",
    "trainer.max_epochs=2",
    "data.max_train_samples=75",
    "augment=none",
    "optim=sgd",
    "optim.lr=0.02",
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.ckpt").state_dict


def test_it_ends_with_the_weights_of_large_batches(run: Run, tiny_config: Config, tmp_path: Path) -> None:
    """With clipping, which must come after the gradients are gathered; the last step takes 11 images."""
    clip = "optim.clip_grad_norm=0.5"
    whole, whole_tracker = run(tiny_config(*HOW, clip, "data.batch_size=32"), "whole")
    parts, parts_tracker = run(
        tiny_config(*HOW, clip, "data.batch_size=16", "optim.accumulate_batches=2"), "parts"
    )
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.allclose(weights(tmp_path / "parts")[name], tensor, atol=1e-6), name
    assert parts.metrics["val/loss"] == pytest.approx(whole.metrics["val/loss"], rel=1e-5)
    for epoch in range(2):
        for name in ("train/loss", "lr"):
            one, other = (tracker.epochs[epoch][name] for tracker in (whole_tracker, parts_tracker))
            assert one == pytest.approx(other, rel=1e-4), name


def test_an_interrupted_accumulation_ends_as_an_uninterrupted_one(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    """Interrupted after the first of a step's three batches; the plateau and the EMA go on."""
    how = (
        *HOW,
        "trainer.max_epochs=5",
        "data.batch_size=16",
        "optim.accumulate_batches=3",
        "average=ema",
        "average.decay=0.5",
        "optim.lr=1e-7",  # nothing is learnt: the plateau comes
        "optim.schedule.kind=plateau",
        "optim.schedule.patience=2",
    )
    config = tiny_config(*how)
    _, tracker = run(config, "whole")
    assert [tracker.epochs[epoch]["lr"] for epoch in (0, 4)] == pytest.approx([1e-7, 1e-8])
    stopped, _ = run(config, **stop_after(2))
    assert stopped.status == "interrupted"
    _, resumed = run(config)
    whole, parts = (load_raw(tmp_path / folder / "last.ckpt") for folder in ("whole", "run"))
    assert whole["lr_schedulers"] == parts["lr_schedulers"]
    assert {e: m["lr"] for e, m in resumed.epochs.items()} == {e: m["lr"] for e, m in tracker.epochs.items()}
    for one, other in (
        (whole["state_dict"], parts["state_dict"]),
        (whole["harness_average"]["trained"], parts["harness_average"]["trained"]),
    ):
        assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_more_batches_than_the_epoch_has_are_refused(run: Run, tiny_config: Config) -> None:
    config = tiny_config("optim.accumulate_batches=4")  # 300 images, 3 batches
    for refuse in (run, describe_run, trace_rates):
        with pytest.raises(
            ConfigError, match=r"accumulate_batches=4 is beyond the epoch, which has 3 batches"
        ):
            refuse(config)
    assert trace_rates(tiny_config("optim.accumulate_batches=2")).steps_per_epoch == 2
    assert "2 an epoch, of 256 images each" in describe_run(tiny_config("optim.accumulate_batches=2"))


def test_two_ways_to_clip_are_refused() -> None:
    lenet = ["data=digits", "model=lenet", "optim.clip_grad_norm=1"]
    with pytest.raises(ConfigError, match="clip_grad_norm and clip_grad_value are two ways to clip: set one"):
        compose_run([*lenet, "optim.clip_grad_value=1"])
