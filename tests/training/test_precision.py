"""Precision, memory and compilation change how fast a run is, not what it learns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.config.schema import RunConfig
from harness.training.checkpoints.checkpoint import load_checkpoint

Config = Callable[..., RunConfig]
Run = Callable[..., tuple]


def test_bf16_learns_as_fp32_does(run: Run, tiny_config: Config) -> None:
    """Their accuracies end within 5 points, their losses within 0.1; bf16 keeps 8 bits of a product."""
    common = ("trainer.max_epochs=5", "data.batch_size=32", "augment=none", "trainer.device=cpu")
    metrics = {}
    for precision in ("fp32", "bf16"):
        config = tiny_config(*common, f"trainer.precision={precision}")
        result, tracker = run(config, precision)
        assert tracker.params["machine.precision"] == precision
        metrics[precision] = tracker.epochs[4]
        assert result.score > 0.7, "the digits are learnt"
    for name, tolerance in (("val/accuracy", 0.05), ("train/loss", 0.1), ("val/loss", 0.1)):
        assert metrics["bf16"][name] == pytest.approx(metrics["fp32"][name], abs=tolerance), name
    assert metrics["bf16"]["train/loss"] != metrics["fp32"]["train/loss"], "autocast was on"


KEEP_MEMORY = """
import sys
from pathlib import Path

from harness.config.compose import compose_run
from tests.helpers.recording_tracker import RecordingTracker
from harness.training.devices.machine import prepare_process
from harness.training.train import train

overrides, folder = sys.argv[2:], Path(sys.argv[1])
for keep in (False, True):  # in this order: glibc's settings cannot be taken back
    config = compose_run([*overrides, f"trainer.keep_memory={keep}"])
    prepare_process(1, config.trainer.keep_memory)
    train(config, tracker=RecordingTracker(), checkpoint_dir=folder / str(keep))
"""


@pytest.mark.slow
def test_keeping_memory_changes_no_weight(tmp_path: Path) -> None:
    overrides = ("data=digits", "model=wide_cnn", "data.max_train_samples=100", "data.batch_size=50")
    rest = ("trainer.max_epochs=1", "augment=strong", "tracking.log_model=false")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KEEP_MEMORY, str(tmp_path), *overrides, *rest]
    subprocess.run(command, cwd=root, check=True, timeout=300)
    off, on = (load_checkpoint(tmp_path / keep / "last.ckpt").state_dict for keep in ("False", "True"))
    assert [name for name in off if not torch.equal(off[name], on[name])] == []


@pytest.mark.slow
def test_a_compiled_run_keeps_the_names_of_its_weights(run: Run, tiny_config: Config, tmp_path: Path) -> None:
    plain = tiny_config("trainer.max_epochs=2", "augment=none", "trainer.precision=fp32")
    assert not plain.trainer.compile, "off by default"
    run(plain, "plain")
    run(plain.model_copy(update={"trainer": plain.trainer.model_copy(update={"compile": True})}), "compiled")
    left, right = (
        load_checkpoint(tmp_path / name / "last.ckpt").state_dict for name in ("plain", "compiled")
    )
    assert list(left) == list(right)
    for name, weights in left.items():
        torch.testing.assert_close(right[name], weights, atol=1e-3, rtol=1e-2)
