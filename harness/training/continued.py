"""Continued training: begins with the weights of a trained model; measures what is forgotten of its images.

`init_from` names the model: a run, an exported bundle, or a checkpoint. `train.py` calls `begin_with`,
then `prepare_model`, which calls `take_weights`, and at the end `measure_forgetting`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from harness.config.schema import AutoData, Cifar10Data, DataConfig, ModelConfig, RunConfig
from harness.data import load_splits
from harness.data.duplicates import keys_of
from harness.data.splits import ImageArrays, ImageSplits
from harness.errors import ConfigError, DataError, HarnessError, ModelError, first_few
from harness.models import ImageClassifier, build_model
from harness.models.head import start_head_at_zero
from harness.models.protocol import digest_of
from harness.training.checkpoints.checkpoint import load_checkpoint, restore_classifier
from harness.training.checkpoints.trained_model import (
    FoundModel,
    about,
    find_bundle,
    find_run,
    load_model,
)
from harness.training.devices.collectives import current_ranks
from harness.training.devices.machine import Machine
from harness.training.evaluate import predict

SETTING = "init_from"
ACCURACY, BEFORE, IMAGES, FORGETTING = (
    "old_val/accuracy", "old_val/accuracy_before", "old_val/images", "forgetting",
)  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """The trained model that a run begins with."""

    words: str
    reference: str  # the run's id, or an absolute path: what `init_from` may say to mean the same again
    run_id: str | None
    classifier: ImageClassifier  # on the CPU, in evaluation mode
    class_names: tuple[str, ...]
    model: ModelConfig
    data: DataConfig  # that it was trained with; of a bundle, with the folders of the run
    data_digest: str
    epoch: int  # 0-based

    @cached_property
    def digest(self) -> str:
        """The SHA-256 (hex) of its weights, its normalisation and its classes."""
        weights = digest_of(sorted(self.weights.items()))
        return hashlib.sha256(f"{weights} {self.mean} {self.std} {self.class_names}".encode()).hexdigest()

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters and buffers of the network, by name."""
        return dict(self.classifier.network.state_dict())

    @property
    def mean(self) -> tuple[float, float, float]:
        """That its network's pixels, in [0, 1], are normalised with."""
        red, green, blue = self.classifier.preprocess.mean.flatten().tolist()
        return red, green, blue

    @property
    def std(self) -> tuple[float, float, float]:
        """Likewise."""
        red, green, blue = self.classifier.preprocess.std.flatten().tolist()
        return red, green, blue

    def describe(self, class_names: Sequence[str]) -> str:
        """Return a line about the model and what of its classes a run with these classes has."""
        known = [name for name in class_names if name in self.class_names]
        new = [name for name in class_names if name not in self.class_names]
        gone = [name for name in self.class_names if name not in class_names]
        told = [f"{len(known)} of its {len(self.class_names)} classes go on"]
        told += [f"{len(new)} new ({first_few(new, 4)})"] if new else []
        told += [f"{len(gone)} gone ({first_few(gone, 4)})"] if gone else []
        return f"{self.words}, epoch {self.epoch + 1}, weights {self.digest[:12]}: {', '.join(told)}"


def find_origin(config: RunConfig) -> FoundModel | None:
    """Find out what `init_from` means: a checkpoint's file, a bundle's folder, or a run; None: nothing.

    Raises:
        HarnessError: there is no such model.
    """
    reference = config.init_from
    if reference is None:
        return None
    if bundle := find_bundle(reference):
        return bundle
    path = Path(reference).expanduser()
    if path.is_file():
        return FoundModel("checkpoint", str(path), f"checkpoint {path}")
    if "/" in reference:
        raise ConfigError(f"init_from={reference}: neither a checkpoint nor a bundle's folder lies there")
    return find_run(SETTING, reference, config.tracking)


def load_origin(found: FoundModel | None, config: RunConfig) -> Origin | None:
    """Return the model that a run begins with; None if it has none. No random number of the run's is drawn.

    Args:
        found: see `find_origin`. Where several ranks train together, rank 0 finds it for all of them.

    Raises:
        HarnessError: it cannot be loaded.
    """
    if found is None:
        return None
    try:
        with torch.random.fork_rng(devices=[]):
            model = load_model(found)
    except HarnessError as error:
        raise about(SETTING, config.init_from, error) from error
    here = {"dir": config.data.dir, "cache_dir": config.data.cache_dir}  # which a bundle does not disclose
    return Origin(
        words=found.words,
        reference=found.run_id or str(Path(found.path).resolve()),
        run_id=model.run_id,
        classifier=model.classifier,
        class_names=model.class_names,
        model=model.model,
        data=TypeAdapter(DataConfig).validate_json(json.dumps({**here, **model.data})),
        data_digest=model.data_digest,
        epoch=model.epoch,
    )


def begin_with(config: RunConfig, splits: ImageSplits) -> tuple[RunConfig, Origin | None, ImageSplits]:
    """Return the trained model that a run begins with, if any.

    The configuration then names it by its id or its path, and the splits have the mean and the deviation
    that its network has learnt to be normalised with. All ranks must call this.

    Raises:
        HarnessError: there is no such model, or it cannot be loaded.
    """
    origin = load_origin(current_ranks().from_zero(lambda: find_origin(config)), config)
    if origin is None:
        return config, None, splits
    named = config.model_copy(update={"init_from": origin.reference})
    return named, origin, replace(splits, mean=origin.mean, std=origin.std)


# ── its weights ───────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def take_weights(
    classifier: ImageClassifier, config: ModelConfig, class_names: Sequence[str], origin: Origin
) -> None:
    """Give a new classifier the weights of a trained one; classes are matched by name.

    The rows of the head that belong to a known class are taken; those of a new class stay as a new head
    begins: random in a network from scratch, zero where `model` is pretrained.

    Args:
        classifier: with random weights, on the CPU.
        class_names: of the run.

    Raises:
        ModelError: the networks have other tensors.
        ConfigError: they normalise pixels in other ways.
    """
    _check_same_preprocessing(classifier, origin)
    network, theirs = classifier.network, origin.weights
    mine = network.state_dict()
    by_class = _tensors_by_class(config, len(class_names))
    _check_same_tensors(mine, theirs, by_class, config, origin)
    network.load_state_dict(
        {name: tensor for name, tensor in theirs.items() if name not in by_class}, strict=False
    )
    if config.is_pretrained:
        start_head_at_zero(network, classifier.image_size)
    places = {name: place for place, name in enumerate(origin.class_names)}
    known = [(new, places[name]) for new, name in enumerate(class_names) if name in places]
    rows, from_rows = (torch.tensor([pair[side] for pair in known], dtype=torch.long) for side in (0, 1))
    for name in by_class:
        mine[name][rows] = theirs[name][from_rows]
    classifier.is_pretrained = True


def _tensors_by_class(config: ModelConfig, num_classes: int) -> list[str]:
    """Return the names of the tensors that have a row for each class, found by adding a class."""
    with torch.device("meta"):
        one, two = (
            build_model(config, number, load_weights=False).network.state_dict()
            for number in (num_classes, num_classes + 1)
        )
    return [name for name in one if one[name].shape != two[name].shape]


def _check_same_tensors(
    mine: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    by_class: Sequence[str],
    config: ModelConfig,
    origin: Origin,
) -> None:
    def shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape, of those by class without the number of classes."""
        if name not in tensors:
            return None
        return tuple(tensors[name].shape)[name in by_class :]

    differing = [
        f"{name} ({_as_text(shape(theirs, name))} there, {_as_text(shape(mine, name))} here)"
        for name in dict.fromkeys([*mine, *theirs])
        if shape(mine, name) != shape(theirs, name)
    ]
    if differing:
        raise ModelError(
            f"{origin.words} ({_model_in_words(origin.model)}) has another architecture than "
            f"{_model_in_words(config)}: {len(differing)} tensors differ, first {', '.join(differing[:2])}: "
            "set the section model as it was there"
        )


def _check_same_preprocessing(classifier: ImageClassifier, origin: Origin) -> None:
    inside, theirs = classifier.preprocess, origin.classifier.preprocess
    if not (torch.equal(inside.mean, theirs.mean) and torch.equal(inside.std, theirs.std)):
        raise ConfigError(
            f"{origin.words} normalises pixels by mean {_rounded(origin.mean)} and deviation "
            f"{_rounded(origin.std)}, this run by others: set model.normalisation="
            f"{getattr(origin.model, 'normalisation', 'data')}"
        )


def _model_in_words(config: ModelConfig) -> str:
    name = getattr(config, "name", None)
    size = f" model.image_size={config.image_size}" if config.image_size else ""
    return f"model={config.kind}{f' model.name={name}' if name else ''}{size}"


def _as_text(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else "×".join(map(str, shape)) or "a number"


def _rounded(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"


# ── what is forgotten ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Forgetting:
    """Accuracies on the validation images of the model that a run began with, of classes that both know."""

    before: float  # of that model
    after: float  # of the run's
    num_images: int  # of classes that both know
    num_gone: int  # further validation images, of classes that the run does not have
    num_trained_on: int  # of `num_images`: whose pixels are among the run's training images

    @property
    def metrics(self) -> dict[str, float]:
        """By the names under which a run records them."""
        return {
            BEFORE: self.before,
            ACCURACY: self.after,
            FORGETTING: self.before - self.after,
            IMAGES: float(self.num_images),
        }

    def __str__(self) -> str:
        line = (
            f"old validation images: accuracy {self.before:.4f} before, {self.after:.4f} after, forgetting "
            f"{self.before - self.after:+.4f} ({self.num_images:,} images)"
        )
        if self.num_gone:
            line += f"; {self.num_gone:,} more are of classes that are gone, and not counted"
        if self.num_trained_on:
            line += (
                f"; {self.num_trained_on:,} of them are training images now, which flatters the second figure"
            )
        return line


def measure_forgetting(
    origin: Origin, config: RunConfig, splits: ImageSplits, kept: Path, machine: Machine
) -> Forgetting:
    """Score the model that a run began with, and the run's own, on the validation images of the first.

    Both answer with the run's `evaluation.tta`; each chooses among all classes that it knows.

    Args:
        config: of the run.
        splits: of the run.
        kept: its checkpoint.

    Raises:
        DataError: the old validation images are not at hand, or there are none of a class that the run has.
        HarnessError: they, or the checkpoint, cannot be read.
    """
    if splits.is_multilabel:
        raise DataError("it compares accuracies, which images with several labels each do not have")
    old = _old_validation(origin)
    places = {name: place for place, name in enumerate(splits.class_names)}
    columns = np.array([places.get(name, -1) for name in origin.class_names])
    labels = columns[old.labels]
    shared = labels >= 0
    if not shared.any():
        raise DataError("no old validation image is of a class that the run has")

    def answers(classifier: ImageClassifier) -> np.ndarray:
        tta = config.evaluation.tta
        logits, _ = predict(classifier.to(machine.device), old, machine, config.data.batch_size, tta)
        return logits.argmax(1)

    before = answers(origin.classifier) == old.labels
    after = answers(restore_classifier(load_checkpoint(kept))) == labels
    part, rows = splits.train.side
    old_part, old_rows = old.side
    now_trained = np.isin(keys_of(old_part.hashes[old_rows]), keys_of(part.hashes[rows]))
    return Forgetting(
        before=float(before[shared].mean()),
        after=float(after[shared].mean()),
        num_images=int(shared.sum()),
        num_gone=int((~shared).sum()),
        num_trained_on=int((now_trained & shared).sum()),
    )


def _old_validation(origin: Origin) -> ImageArrays:
    """Return the validation images of the origin; nothing is downloaded.

    Raises:
        DataError: they are not at hand, or others now.
    """
    asked = origin.data.model_copy(update={"batch_size": 1})
    if isinstance(asked, AutoData | Cifar10Data):
        asked = asked.model_copy(update={"download": False})
    splits = load_splits(asked)
    if splits.digest != origin.data_digest:
        raise DataError(
            f"{asked.kind} in {asked.dir} now gives images with digest {splits.digest[:12]}, not "
            f"{origin.data_digest[:12]}"
        )
    if splits.is_multilabel:
        raise DataError("its images have several labels each, and so no accuracy")
    if not len(splits.val):
        raise DataError("it was trained on its validation images (data.train_on_val)")
    if splits.class_names != origin.class_names:
        raise DataError("their classes have other names now")
    return splits.val
