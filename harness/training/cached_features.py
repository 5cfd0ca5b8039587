"""Caches the activations of a frozen backbone, so that training runs only the layers behind it.

The activations are computed once for each image and each of its views (augmented versions). `train.py` calls
`load_or_compute_features`. `image_views.py` decides whether caching is allowed, `harness.models.trunk` finds
where the frozen part ends, and `harness.data.features` keeps the activations on disk.
"""

from __future__ import annotations

import itertools
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
from harness.config.schema import AugmentConfig, EfficientNetLite, ModelConfig, RunConfig
from harness.data.augment.transforms import BatchAugment
from harness.data.datamodule import ImageDataModule
from harness.data.epochs import VIEW_STREAM, stream_seed
from harness.data.features.cache import feature_key, open_features
from harness.data.features.datamodule import FeatureArrays, FeatureDataModule
from harness.data.features.entry import EntryLayout, FeatureEntry, HalfOverflowError
from harness.data.splits import ImageSplits
from harness.errors import NO_SPACE
from harness.models import ImageClassifier
from harness.models.trunk import Boundary, find_boundaries, trunk_activations, trunk_digest
from harness.training.callbacks import Interrupted
from harness.training.devices.collectives import current_ranks
from harness.training.devices.machine import Machine
from harness.training.image_views import count_views, is_exhaustive, is_flip_alone, needs_images

# The numbers of trained depth groups whose activations share one cache entry: linear probes (0) and
# `partial` runs that train few groups.
SHARED_DEPTHS = (0, 1, 2, 3)
PROBED_IMAGES = 2  # images in the forward pass that finds the boundaries
BATCH = 128  # images in a forward pass; fixed, because another batch size may round differently
# If an activation of the probed images exceeds this, the array is float32 from the start; the largest
# float16 is 65,504.
LARGEST_HALF = 1e4
# The versions of these are part of an entry's name, because another version may round differently.
LIBRARIES = ("torch", "timm")

log = logging.getLogger(__name__)


def load_or_compute_features(
    classifier: ImageClassifier,
    images: ImageDataModule,
    config: RunConfig,
    machine: Machine,
    stop_requested: Callable[[], bool] | None = None,
) -> FeatureDataModule | None:
    """Return cached activations and set the classifier to take them; None if the run has to train on images.

    Missing activations are computed here. Ranks share that work as independent processes do: each locks a
    chunk of the cache entry and computes it. Either all ranks return activations, or all return None.

    Args:
        images: the data module of the images; used if the result is None.
        stop_requested: called between chunks of rows.

    Raises:
        Interrupted: `stop_requested` returned True on some rank; the rows computed so far stay on disk.
    """
    ranks = current_ranks()
    data, is_interrupted = None, False
    try:
        data = _own_data(classifier, images, config, machine, stop_requested)
    except Interrupted:
        is_interrupted = True
    # An interrupted rank gets here, too: if it raised above, the others would wait for it below.
    if ranks.any(is_interrupted):
        raise Interrupted
    # If one rank has no activations (a full disk, say), all train on images: their batches must be alike.
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
        assert finetune.trained_depth is not None  # or it would need images
        plan = _Plan(classifier, images.splits, config, machine, num_views)
        # The memory format of training, because another one changes the last bits of the activations.
        classifier.to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rows = plan.rows(finetune.trained_depth, stop_requested or (lambda: False))
        if rows is not None:
            train, val = plan.arrays(rows)
            return FeatureDataModule(
                train,
                val,
                config.data.batch_size,
                images.epochs,
                views=_flips(images, machine) if is_flip_alone(config.augment) and num_views == 2 else None,
                pin_memory=images.pin_memory,
                rank_info=images.rank_info,
            )
        reason = plan.reason
    # A warning only if the user set `feature_views` and it has no effect. Otherwise the cache is merely an
    # optimisation that does not apply here.
    is_asked_for = finetune.feature_views is not None and not is_exhaustive(config.augment)
    log.log(logging.WARNING if is_asked_for else logging.INFO, "features: not cached, %s", reason)
    return None


def _flips(images: ImageDataModule, machine: Machine) -> Callable[[int], np.ndarray]:
    """Return a function that maps an epoch to the view of each image, int64 (n,), in the epoch's order.

    View 1 is the mirrored image. The views are those that a run on images would draw.
    """
    return lambda epoch: images.flips(epoch, machine.device).astype(np.int64)


def _array_name(depth: int) -> str:
    return f"depth{depth}"


def settings_in_key(section: ModelConfig | AugmentConfig) -> dict[str, Any]:
    """Return a section's settings, less defaults that earlier versions, whose entries hold, did not have."""
    if isinstance(section, AugmentConfig):
        newer: dict[str, Any] = dict.fromkeys(("rotation", "scale", "blur_sigma", "noise_std"), 0.0)
        newer |= {"augmix_severity": 3, "augmix_width": 3, "augmix_depth": None, "mix_off_epoch": None}
    else:
        newer = {"stem": "default"}
        if isinstance(section, EfficientNetLite):
            newer |= {"drop_rate": 0.0, "drop_path_rate": 0.0}
    settings = section.model_dump(mode="json").items()
    return {name: value for name, value in settings if name not in newer or value != newer[name]}


@dataclass
class _Plan:
    """The activations of one run: which cache entry holds them, and how its rows are computed.

    Rows are ordered by view, then by image, training before validation: with N training images and V views,
    row v * N + i is view v of training image i, and the rows from V * N on are the validation images.

    A run on a few-shot or long-tailed subset reads the entry of all training images where that is complete.
    Otherwise it makes an entry of the subset alone, which takes less time, and from then on reads that one.
    The two can differ in the last bit of float16: the last batch of an entry has a size of its own. The
    folds of cross-validation share one entry of all their images.
    """

    classifier: ImageClassifier
    splits: ImageSplits
    config: RunConfig
    machine: Machine
    num_views: int
    reason: str = ""  # for people: why nothing is cached

    def __post_init__(self) -> None:
        self.images = self.splits.rows  # those of the entry
        self._augment = BatchAugment(self.config.augment)

    @property
    def num_rows(self) -> int:
        return self.num_views * len(self.images.train) + len(self.images.val)

    @property
    def is_drawn(self) -> bool:
        """Whether views are drawn at random, by their row's number."""
        return self.num_views > 1 and not is_flip_alone(self.config.augment)

    def arrays(self, rows: np.ndarray) -> tuple[FeatureArrays, FeatureArrays]:
        """Return the activations of the run's training and validation images among all rows of the entry."""
        train, val, count = self.splits.train, self.splits.val, len(self.images.train)
        at = None
        if self.images is self.splits.whole:
            own = np.searchsorted(self.images.train.indices, train.indices)
            at = (np.arange(self.num_views)[:, None] * count + own).ravel()
        num_train = count * self.num_views
        validation = FeatureArrays(rows[num_train:], val.labels)
        if len(self.images.val) < len(val):  # folds: the validation images are among those of `whole.train`
            validation = FeatureArrays(
                rows[:count], val.labels, at=np.searchsorted(self.images.train.indices, val.indices)
            )
        return FeatureArrays(rows[:num_train], train.labels, self.num_views, at), validation

    def rows(self, depth: int, stop_requested: Callable[[], bool]) -> np.ndarray | None:
        """Return the activations at a depth, and set the classifier to take them.

        Returns:
            All rows, float16 or float32, memory-mapped; None if nothing is cached (`reason` then says why).

        Raises:
            Interrupted: `stop_requested` returned True; the rows computed so far stay on disk.
        """
        own, whole = self.splits.rows, self.splits.whole
        candidates = [(own, True)]  # and whether an entry may be made
        if whole is not None and not self.is_drawn:
            is_fold = self.config.data.folds is not None and not self.config.data.takes_subset
            candidates = [(whole, True)] if is_fold else [(own, False), (whole, False), (own, True)]
        # float16 first. If a value is beyond its range, all rows are computed again for an entry of float32.
        for half, (self.images, may_make) in itertools.product((True, False), candidates):
            started = time.perf_counter()
            try:
                opened = self._open(depth, half=half, may_make=may_make)
                if opened is None:
                    if may_make:
                        return None
                    continue
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
            # The boundaries are those of the entry, found by the process that made it.
            boundary = next(boundary for boundary in boundaries if boundary.depth == depth)
            self.classifier.enter_at(boundary.entry, boundary.passed)
            return entry.read(_array_name(depth))
        raise AssertionError("float32 has no such limit")

    def _open(self, depth: int, *, half: bool, may_make: bool) -> tuple[FeatureEntry, list[Boundary]] | None:
        """Open the entry that holds this depth: one shared with other depths if there is room, else its own.

        Args:
            may_make: otherwise one that exists, and of `splits.whole` only a complete one.

        Returns:
            The entry and its boundaries; None if there is none (`reason` then says why).
        """
        limit = self.config.data.feature_cache_gb * 1e9
        shared = SHARED_DEPTHS if depth in SHARED_DEPTHS else (depth,)
        shaped_by = self._shaped_by()
        for depths in dict.fromkeys([shared, (depth,)]):
            key = feature_key({**shaped_by, "depths": depths, "half": half})
            cache_dir = Path(self.config.data.cache_dir)
            # Called only if the entry does not exist yet: it runs the network.
            describe = lambda depths=depths: (  # noqa: E731
                self._describe(depths, depth, half=half) if may_make else None
            )
            entry = open_features(cache_dir, key, self.num_rows, describe, limit)
            is_whole = self.images is self.splits.whole
            if entry is not None and (may_make or not is_whole or entry.is_marked_complete):
                boundaries = [Boundary(d, e, tuple(p)) for d, e, p in entry.layout.about["boundaries"]]
                return entry, boundaries
            if may_make:
                self.reason = self.reason or "they exceed data.feature_cache_gb or the disk's free space"
        return None

    def _shaped_by(self) -> dict[str, Any]:
        """Return everything that the activations depend on, except the depth.

        The name of the cache entry is a hash of this, of the entry's depths and of whether float16 is tried.
        """
        preprocess = self.classifier.preprocess
        return {
            "model": settings_in_key(self.config.model),
            "weights": trunk_digest(self.classifier),
            "preprocess": preprocess.extra_repr(),
            "images": self.images.digest,
            "rows": [len(self.images.train), len(self.images.val)],
            "views": self.num_views,
            "drawn": [self.config.seed, settings_in_key(self.config.augment)] if self.is_drawn else None,
            "device": self.machine.device.type,
            "precision": self.machine.precision,
            "libraries": {name: version(name) for name in LIBRARIES},
        }

    def _describe(self, depths: Sequence[int], wanted: int, *, half: bool) -> EntryLayout | None:
        """Return the layout of a new entry; None if the network has no boundary at depth `wanted`."""
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
        """Return a function that computes the rows from `start` to `stop` of each array, by its name."""

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
        """Return the images (B, 3, H, W) of a range of rows, each in its view."""
        count = len(self.images.train)
        parts = []
        while start < stop:
            # A range can reach from one view into the next, and from training into validation.
            view, position = divmod(start, count)
            if view >= self.num_views:
                arrays, position, view = self.images.val, start - self.num_views * count, 0
            else:
                arrays = self.images.train
            end = min(position + stop - start, len(arrays))
            # As many images as are left in this view.
            images = torch.from_numpy(arrays.gather(slice(position, end))).permute(0, 3, 1, 2)
            parts.append(self._view(images.to(self.machine.device), view, position))
            start += end - position
        return torch.cat(parts)

    def _view(self, images_BCHW: Tensor, view: int, position: int) -> Tensor:
        """Return a view: the images themselves (view 0), mirrored, or with a random augmentation."""
        if view == 0:
            return images_BCHW
        if is_flip_alone(self.config.augment):
            return images_BCHW.flip(3)
        # Seeded by view and position: whichever process computes a chunk draws the same.
        generator = torch.Generator(images_BCHW.device)
        generator.manual_seed(stream_seed(self.config.seed, VIEW_STREAM, view, position))
        return self._augment(images_BCHW, generator)


def _to_rows(activations: Tensor) -> np.ndarray:
    """Return activations as the cache keeps their axes, float32: feature maps are (B, H, W, C)."""
    rows = activations.permute(0, 2, 3, 1) if activations.ndim == 4 else activations
    return rows.float().cpu().numpy()


def _dtype(activations: Tensor) -> str:
    return "float16" if activations.abs().max() < LARGEST_HALF else "float32"
