"""Checkpoints that survive a kill at any instant, and how a model is rebuilt from one.

A file is written under a temporary name in the same folder, synced, then renamed over the old one: a
reader sees the old checkpoint or the new one, never half of either.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from harness.config.problems import validate
from harness.config.schema import RunConfig
from harness.errors import CheckpointError
from harness.models import ImageClassifier, build_model

SECTION = "harness"  # where a checkpoint keeps what Lightning does not know of
PREFIX = "classifier."  # of the classifier's tensors within the LightningModule's


@dataclass(frozen=True)
class ModelFacts:
    """What a model cannot be rebuilt or understood without, as plain values."""

    config: dict[str, Any]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]  # of the training pixels, in [0, 1]
    std: tuple[float, float, float]
    data_name: str
    data_digest: str

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
    score: float  # val/accuracy of that epoch
    state_dict: dict[str, torch.Tensor]  # of the ImageClassifier


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written so that a crash or a power cut cannot tear them."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable (POSIX; elsewhere folders cannot be opened)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Load a checkpoint of this program; nothing in it is executed (`weights_only=True`).

    Raises:
        CheckpointError: the file is missing, damaged, or was not written by this program.
    """
    path = Path(path)
    raw = _load_raw(path)
    section = raw[SECTION]
    weights = {key.removeprefix(PREFIX): v for key, v in raw["state_dict"].items() if key.startswith(PREFIX)}
    return Checkpoint(
        path=path,
        config=validate(RunConfig, section["config"]),
        class_names=tuple(section["class_names"]),
        mean=tuple(section["mean"]),
        std=tuple(section["std"]),
        data_name=section["data_name"],
        data_digest=section["data_digest"],
        epoch=int(section["epoch"]),
        score=float(section["score"]),
        state_dict=weights,
    )


def load_section(path: Path) -> dict[str, Any]:
    """Return what this program wrote beside the weights: :class:`ModelFacts`, epoch and score, plain.

    Raises:
        CheckpointError: as :func:`load_checkpoint`.
    """
    return dict(_load_raw(path)[SECTION])


def _load_raw(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: train the run first, or name another")
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}): delete it and train again"
        ) from error
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
        raise CheckpointError(
            f"{checkpoint.path} does not fit its model: {str(error).splitlines()[0]}"
        ) from error
    return classifier.eval()
