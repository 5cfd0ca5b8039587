"""A trained-looking checkpoint of a small model, and one bundle of it that every test may read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config.schema import DataConfig, DigitsData, ModelConfig, RunConfig, ScratchModel
from harness.data.splits import ImageArrays
from harness.export.bundle import ExportResult, export_checkpoint
from harness.export.manifest import RunFacts
from harness.models import build_model
from harness.training.checkpoints.checkpoint import PREFIX, SECTION, ModelFacts
from harness.training.checkpoints.checkpoint_io import AtomicCheckpointIO

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "acht & neun", "猫")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
METRICS = {"val/accuracy": 0.8125, "val/f1": 0.8, "val/auc": 0.95, "train/loss": 0.3}


def make_images(count: int = 300, side: int = 32) -> ImageArrays:
    """Smooth random images: unlike noise, they have the large-scale contrasts that move logits."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    images = coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)
    return ImageArrays(images, rng.integers(0, len(CLASSES), count), np.arange(count))


def write_checkpoint(path: Path, model: ModelConfig, seed: int = 0, data: DataConfig | None = None) -> Path:
    """Write what training writes; small models get random weights large enough to tell images apart."""
    torch.manual_seed(seed)
    classifier = build_model(model, len(CLASSES), mean=MEAN, std=STD, load_weights=False)
    is_deep = model.kind == "efficientnet_lite0"  # untrained and scaled up, it would amplify rounding
    scale = 1.0 if is_deep else 1.5
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.mul_(scale)
    data = data or DigitsData(dir="somewhere/private", max_train_samples=500)
    config = RunConfig(model=model, data=data)
    facts = ModelFacts(config.to_dict(), CLASSES, MEAN, STD, "digits", "d1ce" * 16)
    content = {
        "state_dict": {PREFIX + name: tensor for name, tensor in classifier.state_dict().items()},
        SECTION: {**facts.to_dict(), "epoch": 3, "score": 0.8125},
    }
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def export(
    checkpoint: Path, output_dir: Path, name: str = "demo", images: ImageArrays | None = None
) -> ExportResult:
    facts = RunFacts(
        run_id="0123abcd",
        sweep="lr-and-depth",
        trial=4,
        num_trials=12,
        is_best_of_sweep=True,
        metrics=METRICS,
    )
    return export_checkpoint(
        checkpoint, output_dir, name=name, val_images=images or make_images(), facts=facts
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt", ScratchModel(kind="lenet"))


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export(checkpoint, tmp_path_factory.mktemp("exports"))


@pytest.fixture
def bundle(exported: ExportResult, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return shutil.copytree(exported.path, tmp_path / "copies" / "demo")
