"""The content of a checkpoint, and how a model is rebuilt from one.

`evaluate.py`, `resume_point.py`, `harness.export` and MLflow's loader (`harness.tracking.scoring`) load
checkpoints through this module. Lightning collects the content; `checkpoint_io.py` writes the bytes.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness.config.finetune import Lora
from harness.config.schema import RunConfig
from harness.config.validation import validate
from harness.errors import CheckpointError, first_line
from harness.models import ImageClassifier, build_model
from harness.models.lora import merge_adapters
from harness.training.checkpoints.checkpoint_io import damaged, verify_digest

SECTION = "harness"  # the key of our part of a checkpoint, beside Lightning's
PREFIX = "classifier."  # the LightningModule's state dict puts it before the classifier's tensor names


@dataclass(frozen=True)
class ModelFacts:
    """The facts needed to rebuild and use a model, beside its weights."""

    config: dict[str, Any]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]  # of the training pixels, in [0, 1]
    std: tuple[float, float, float]
    data_name: str
    data_digest: str
    teacher: str | None = None  # the digest of the teacher that the model learnt from, if any
    origin: str | None = None  # the digest of the model whose weights the training began with, if any

    def to_dict(self) -> dict[str, Any]:
        """Return lists and strings only, so that `weights_only=True` loads them back."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, loaded and checked."""

    path: Path
    config: RunConfig
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    data_name: str
    data_digest: str
    epoch: int  # 0-based
    score: float  # of that epoch, by the configuration's trainer.monitor
    state_dict: dict[str, torch.Tensor]  # of the ImageClassifier; adapters are merged into its weights


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Load a checkpoint of this program; nothing in it is executed (`weights_only=True`).

    Raises:
        CheckpointError: the file is missing, damaged, or was not written by this program.
    """
    path = Path(path)
    raw = load_raw(path)
    section = raw[SECTION]
    config = validate(RunConfig, section["config"])
    weights = {key.removeprefix(PREFIX): v for key, v in raw["state_dict"].items() if key.startswith(PREFIX)}
    if isinstance(config.finetune, Lora):
        weights = merge_adapters(weights, config.finetune)
    return Checkpoint(
        path=path,
        config=config,
        class_names=tuple(section["class_names"]),
        mean=tuple(section["mean"]),
        std=tuple(section["std"]),
        data_name=section["data_name"],
        data_digest=section["data_digest"],
        epoch=int(section["epoch"]),
        score=float(section["score"]),
        state_dict=weights,
    )


def load_raw(path: Path) -> dict[str, Any]:
    """Return the whole content of a checkpoint, on the CPU: Lightning's part, and ours under `SECTION`.

    Raises:
        DamagedCheckpointError: its bytes are not the bytes that were written.
        CheckpointError: it is missing, does not load, or was not written by this program.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: train the run first, or name another")
    is_verified = verify_digest(path)
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        # The bytes are right, so the cause is too little memory or another version of torch. The previous
        # checkpoint would fail in the same way, so a resumed run must not fall back to it.
        if is_verified:
            raise CheckpointError(f"{path} is whole, but does not load: {first_line(error)}") from error
        raise damaged(path, type(error).__name__) from error
    if not isinstance(raw, dict) or not isinstance(raw.get(SECTION), Mapping) or "state_dict" not in raw:
        raise CheckpointError(f"{path} was not written by this program: it has no {SECTION!r} section")
    return raw


def restore_classifier(checkpoint: Checkpoint) -> ImageClassifier:
    """Return the checkpoint's model on the CPU, in evaluation mode.

    Raises:
        CheckpointError: its tensors do not fit the model that its configuration describes.
    """
    classifier = build_model(
        checkpoint.config.model,
        len(checkpoint.class_names),
        mean=checkpoint.mean,
        std=checkpoint.std,
        load_weights=False,
    )
    try:
        classifier.load_state_dict(checkpoint.state_dict)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path} does not fit its model: {first_line(error)}") from error
    return classifier.eval()
