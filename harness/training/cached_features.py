"""A frozen backbone is run once per image and view; after that only what trains runs.

What the frozen part computes is kept on disk (`harness.data.features`) and entered into the network where the
first trainable module starts (`harness.models.trunk`). When that is done: `harness.training.image_views`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.config.finetune import FrozenBackbone
from harness.config.schema import RunConfig
from harness.data.augment.transforms import BatchAugment
from harness.data.datamodule import VIEW_STREAM, ImageDataModule, stream_seed
from harness.data.features.cache import feature_key, open_features
from harness.data.features.datamodule import FeatureArrays, FeatureDataModule
from harness.data.features.entry import EntryLayout, FeatureEntry, HalfOverflowError
from harness.data.splits import ImageSplits
from harness.errors import NO_SPACE
from harness.models import ImageClassifier
from harness.models.trunk import Boundary, find_boundaries, trunk_activations, trunk_digest
from harness.training.callbacks import Interrupted
from harness.training.collectives import current_ranks
from harness.training.image_views import count_views, is_exhaustive, is_flip_alone, needs_images
from harness.training.machine import Machine

SHARED_DEPTHS = (0, 1, 2, 3)  # one pass keeps what the linear probe and the shallowest partial trials need
PROBED_IMAGES = 2  # to see the network run
BATCH = 128
LARGEST_HALF = 1e4  # where a few images have activations beyond it, halves are not tried: they end at 65,504
LIBRARIES = ("torch", "timm")  # other versions may compute other bits

log = logging.getLogger(__name__)


def load_or_compute_features(
    classifier: ImageClassifier,
    images: ImageDataModule,
    config: RunConfig,
    machine: Machine,
    stop_requested: Callable[[], bool] | None = None,
) -> FeatureDataModule | None:
    """Return activations in place of images, and have the classifier enter there; None where images must do.

    Args:
        images: what is trained on otherwise.

    Ranks that train together share the work as any processes do, and end alike.

    Raises:
        Interrupted: it was asked to stop; what was computed stays.
    """
    ranks = current_ranks()
    data, is_interrupted = None, False
    try:
        data = _own_data(classifier, images, config, machine, stop_requested)
    except Interrupted:
        is_interrupted = True
    if ranks.any(is_interrupted):
        raise Interrupted
    if ranks.any(data is None):
        classifier.enter_at_pixels()
        return None
    return data


def _own_data(
    classifier: ImageClassifier,
    images: ImageDataModule,
    config: RunConfig,
    machine: Machine,
    stop_requested: Callable[[], bool] | None,
) -> FeatureDataModule | None:
    finetune = config.finetune
    if not isinstance(finetune, FrozenBackbone) or not finetune.cache_features:
        return None
    num_views = count_views(config.augment, finetune.feature_views)
    reason = needs_images(config)
    if reason is None and num_views is None:
        reason = (
            "augmentation draws anew in every epoch (finetune.feature_views=N would keep N views instead)"
        )
    if reason is None:
        assert num_views is not None
        plan = _Plan(classifier, images.splits, config, machine, num_views)
        classifier.to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rows = plan.rows(finetune.trained_depth, stop_requested or (lambda: False))
        if rows is not None:
            num_train = len(images.splits.train) * num_views
            return FeatureDataModule(
                FeatureArrays(rows[:num_train], images.splits.train.labels, num_views),
                FeatureArrays(rows[num_train:], images.splits.val.labels),
                config.data.batch_size,
                config.seed,
                views=_flips(images, machine) if is_flip_alone(config.augment) and num_views == 2 else None,
                pin_memory=images.pin_memory,
                rank_info=images.rank_info,
            )
        reason = plan.reason
    is_asked_for = finetune.feature_views is not None and not is_exhaustive(config.augment)
    log.log(logging.WARNING if is_asked_for else logging.INFO, "features: not cached, %s", reason)
    return None


def _flips(images: ImageDataModule, machine: Machine) -> Callable[[int], np.ndarray]:
    """Return what says which images an epoch mirrors: those that it would without the cache."""
    return lambda epoch: images.flips(epoch, machine.device).astype(np.int64)


def _array_name(depth: int) -> str:
    return f"depth{depth}"


@dataclass
class _Plan:
    """What is cached for a run, and how it is computed."""

    classifier: ImageClassifier
    splits: ImageSplits
    config: RunConfig
    machine: Machine
    num_views: int
    reason: str = ""  # why it is not cached

    def __post_init__(self) -> None:
        self.num_rows = self.num_views * len(self.splits.train) + len(self.splits.val)
        self._augment = BatchAugment(self.config.augment)

    def rows(self, depth: int, stop_requested: Callable[[], bool]) -> np.ndarray | None:
        """Return the activations at a depth, and have the classifier enter there; None with a `reason`.

        Raises:
            Interrupted: it was asked to stop; what was computed stays.
        """
        for half in (True, False):
            started = time.perf_counter()
            try:
                opened = self._open(depth, half=half)
                if opened is None:
                    return None
                entry, boundaries = opened
                log.info("features: %d views of each image, in %s", self.num_views, entry.folder)
                if not entry.complete([_array_name(depth)], self._computer(boundaries), stop_requested):
                    raise Interrupted
            except HalfOverflowError:
                log.info("features: some are beyond float16, so that all are kept in float32")
                continue
            except PermissionError as error:
                self.reason = f"{error.filename} is another user's; set data.cache_dir"
                return None
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                self.reason = f"the disk is full ({self.config.data.cache_dir})"
                return None
            log.info("features: ready after %.1f s", time.perf_counter() - started)
            boundary = next(boundary for boundary in boundaries if boundary.depth == depth)
            self.classifier.enter_at(boundary.entry, boundary.passed)
            return entry.read(_array_name(depth))
        raise AssertionError("float32 has no such limit")

    def _open(self, depth: int, *, half: bool) -> tuple[FeatureEntry, list[Boundary]] | None:
        """Open the entry that has this depth: one with the neighbouring depths, else one of its own."""
        limit = self.config.data.feature_cache_gb * 1e9
        shared = SHARED_DEPTHS if depth in SHARED_DEPTHS else (depth,)
        shaped_by = self._shaped_by()
        for depths in dict.fromkeys([shared, (depth,)]):
            key = feature_key({**shaped_by, "depths": depths, "half": half})
            cache_dir = Path(self.config.data.cache_dir)
            describe = lambda depths=depths: self._describe(depths, depth, half=half)  # noqa: E731
            entry = open_features(cache_dir, key, self.num_rows, describe, limit)
            if entry is not None:
                boundaries = [Boundary(d, e, tuple(p)) for d, e, p in entry.layout.about["boundaries"]]
                return entry, boundaries
            self.reason = self.reason or "they exceed data.feature_cache_gb or the disk's free space"
        return None

    def _shaped_by(self) -> dict[str, Any]:
        preprocess = self.classifier.preprocess
        is_drawn = self.num_views > 1 and not is_flip_alone(self.config.augment)
        return {
            "model": self.config.model.model_dump(mode="json"),
            "weights": trunk_digest(self.classifier),
            "preprocess": preprocess.extra_repr(),
            "images": self.splits.row_digest,
            "rows": [len(self.splits.train), len(self.splits.val)],
            "views": self.num_views,
            "drawn": [self.config.seed, self.config.augment.model_dump(mode="json")] if is_drawn else None,
            "device": self.machine.device.type,
            "precision": self.machine.precision,
            "libraries": {name: version(name) for name in LIBRARIES},
        }

    def _describe(self, depths: Sequence[int], wanted: int, *, half: bool) -> EntryLayout | None:
        images = self._images(0, PROBED_IMAGES)
        found = find_boundaries(self.classifier, images, depths)
        if wanted not in found:
            self.reason = f"{self.config.model.kind} cannot be entered at the wanted depth"
            return None
        activations = trunk_activations(self.classifier, images, list(found.values()))
        return EntryLayout(
            num_rows=self.num_rows,
            arrays={
                _array_name(depth): (tuple(_to_rows(rows).shape[1:]), _dtype(rows) if half else "float32")
                for depth, rows in activations.items()
            },
            about={
                "model": self.config.model.kind,
                "image_size": self.classifier.image_size,
                "data": self.splits.name,
                "views": self.num_views,
                "boundaries": [[b.depth, b.entry, b.passed] for b in found.values()],
            },
        )

    def _computer(self, boundaries: Sequence[Boundary]) -> Callable[[int, int], Mapping[str, np.ndarray]]:
        """Return the function that computes a range of rows."""

        def compute(start: int, stop: int) -> dict[str, np.ndarray]:
            firsts = range(start, stop, BATCH)
            parts = [self._activations(first, min(first + BATCH, stop), boundaries) for first in firsts]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        return compute

    def _activations(self, start: int, stop: int, boundaries: Sequence[Boundary]) -> dict[str, np.ndarray]:
        with self.machine.autocast():
            found = trunk_activations(self.classifier, self._images(start, stop), boundaries)
        return {_array_name(depth): _to_rows(activations) for depth, activations in found.items()}

    def _images(self, start: int, stop: int) -> Tensor:
        """Return the images behind a range of rows: training, view after view, then validation."""
        count = len(self.splits.train)
        parts = []
        while start < stop:
            view, position = divmod(start, count)
            if view >= self.num_views:
                arrays, position, view = self.splits.val, start - self.num_views * count, 0
            else:
                arrays = self.splits.train
            end = min(position + stop - start, len(arrays))
            images = torch.from_numpy(arrays.gather(slice(position, end))).permute(0, 3, 1, 2)
            parts.append(self._view(images.to(self.machine.device), view, position))
            start += end - position
        return torch.cat(parts)

    def _view(self, images_BCHW: Tensor, view: int, position: int) -> Tensor:
        """Return the images themselves for view 0, mirrored or as augmentation draws for the others."""
        if view == 0:
            return images_BCHW
        if is_flip_alone(self.config.augment):
            return images_BCHW.flip(3)
        generator = torch.Generator(images_BCHW.device)
        generator.manual_seed(stream_seed(self.config.seed, VIEW_STREAM, view, position))
        return self._augment(images_BCHW, generator)


def _to_rows(activations: Tensor) -> np.ndarray:
    """Return activations as they are kept: maps in (B, H, W, C) order, halves where they fit."""
    rows = activations.permute(0, 2, 3, 1) if activations.ndim == 4 else activations
    return rows.float().cpu().numpy()


def _dtype(activations: Tensor) -> str:
    return "float16" if activations.abs().max() < LARGEST_HALF else "float32"
