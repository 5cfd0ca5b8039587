"""Finds and loads a trained model that a run builds on: a recorded run's, or that of an exported bundle.

`teacher.py` (a model to learn from) and `continued.py` (weights to begin with) call it, each for its setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.config.schema import ModelConfig, TrackingConfig
from harness.errors import HarnessError
from harness.export.manifest import CONFIG_FILE
from harness.models import ImageClassifier
from harness.tracking import names
from harness.tracking.choice import choose
from harness.training.checkpoints.checkpoint import load_checkpoint, restore_classifier


@dataclass(frozen=True)
class FoundModel:
    """Where a trained model lies, before it is loaded."""

    kind: Literal["run", "bundle", "checkpoint"]
    path: str
    words: str  # "run … (name)", "bundle …", "checkpoint …"
    run_id: str | None = None
    val_accuracy: float | None = None  # as recorded with a run


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, on the CPU, and what is known of it."""

    classifier: ImageClassifier
    class_names: tuple[str, ...]
    model: ModelConfig
    data: dict[str, Any]  # the section `data` that it was trained with; a bundle's names no folders
    data_digest: str  # of the training and validation images
    epoch: int  # 0-based
    run_id: str | None
    val_accuracy: float | None


def find_bundle(reference: str) -> FoundModel | None:
    """Return the bundle in the folder that a setting names, if one is there."""
    folder = Path(reference).expanduser()
    if not (folder / CONFIG_FILE).is_file():
        return None
    return FoundModel("bundle", str(folder), f"bundle {folder.name}")


def find_run(setting: str, reference: str, tracking: TrackingConfig) -> FoundModel:
    """Return the checkpoint of the run that a setting names; of a sweep's name, its best trial's.

    Raises:
        HarnessError: there is no such run, or it kept no checkpoint.
    """
    try:
        choice = choose(tracking, reference)
    except HarnessError as error:
        raise about(setting, reference, error) from error
    run = choice.run
    accuracy = run.results.get(names.VAL_ACCURACY)
    return FoundModel("run", str(choice.checkpoint), f"run {run.run_id} ({run.name})", run.run_id, accuracy)


def load_model(found: FoundModel) -> TrainedModel:
    """Return a model that was found. Building it draws random numbers.

    Raises:
        HarnessError: it cannot be loaded.
    """
    if found.kind != "bundle":
        checkpoint = load_checkpoint(found.path)
        return TrainedModel(
            classifier=restore_classifier(checkpoint),
            class_names=checkpoint.class_names,
            model=checkpoint.config.model,
            data=checkpoint.config.data.model_dump(mode="json"),
            data_digest=checkpoint.data_digest,
            epoch=checkpoint.epoch,
            run_id=found.run_id,
            val_accuracy=found.val_accuracy,
        )
    from harness.export.predict import load_bundle  # with it, ONNX Runtime is imported
    from harness.export.weights import restore

    bundle = load_bundle(found.path)
    config = bundle.config
    return TrainedModel(
        classifier=restore(config, bundle.path),
        class_names=config.classes,
        model=config.model,
        data=config.training["data"],
        data_digest=config.data.digest,
        epoch=config.epoch,
        run_id=config.run.run_id,
        val_accuracy=config.run.metrics.get(names.VAL_ACCURACY),
    )


def about(setting: str, reference: str | None, error: HarnessError) -> HarnessError:
    """Return an error that begins with the setting which led to it."""
    return type(error)(f"{setting}={reference}: {error}")
