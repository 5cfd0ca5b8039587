"""Training, validation and test splits of a decoded data set, and the digest that identifies them.

`load.py` calls `build_splits`; only `held_out.py` calls `build_test`. A split lists rows of the source's
arrays and copies no pixels. The test images are picked with a fixed seed: they depend on the source and its
`test_fraction`, and on no other setting of a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from harness.config.schema import BaseData
from harness.data.decoded_cache import BROKEN, INDEX_FILES, DecodedSet, Part, PartName, content_digest
from harness.data.decoding.image_files import ImageFiles
from harness.data.decoding.pixels import PixelRange
from harness.data.duplicates import Side, first_of_duplicates, without_duplicates_of
from harness.data.epochs import images_in_pass
from harness.data.folds import rows_of_fold
from harness.data.groups import set_aside_groups
from harness.data.messages import counted
from harness.data.subsets import allocate, choose_subset, noisy_labels, pick_stratified
from harness.errors import ConfigError, DataError, first_few

TEST_SPLIT_SEED = 0  # not configurable: the held-out images stay the same whatever is tried

# For each part, the parts whose images it must not contain. So no score is of an image that was trained on.
YIELDS_TO: dict[PartName, tuple[PartName, ...]] = {
    "train": ("val", "test"),
    "val": ("test",),
    "test": (),
}

# What the images of the training part are for, the split that is set aside next last.
FOR_VALIDATION = ("training", "validation")
FOR_TEST = ("training", "test")
FOR_TEST_AND_VALIDATION = ("training", "validation", "test")

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ImageArrays:
    """One split: rows of a memory map (or of a list of files) that all splits of a source share.

    `images[indices]` would copy the split into memory; `gather` copies a batch of it.

    Args:
        images: uint8 (M, H, W, 3), or files; all images of the source, not of this split alone.
        labels: Of this split, in its order: int64 (N,), or of multi-label images 0 and 1, float32 (N, K).
        indices: int64 (N,), where this split's images lie in `images`.
        digest: sha256 (hex) of this split's pixels and labels, in its order; empty where it is not known.
        part: That `indices` point into; None for images that come from no source.
    """

    images: np.ndarray | ImageFiles
    labels: np.ndarray
    indices: np.ndarray
    digest: str = ""
    part: Part | None = field(default=None, repr=False)

    @property
    def side(self) -> Side:
        """The part of the source, and this split's rows in it."""
        assert self.part is not None, "these images come from no source"
        return self.part, self.indices

    def __len__(self) -> int:
        return len(self.indices)

    def gather(self, positions: np.ndarray | slice) -> np.ndarray:
        """Return a copy of the images at `positions` of this split, uint8 (B, H, W, 3)."""
        return self.images.take(self.indices[positions], axis=0)

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield `gather(positions)` for each batch of positions, read ahead where images are in files."""
        rows = (self.indices[positions] for positions in batches)
        if isinstance(self.images, ImageFiles):
            return self.images.stream(rows)
        return (self.images.take(batch, axis=0) for batch in rows)


@dataclass(frozen=True)
class Rows:
    """Images in the order of the rows of a feature cache's entry: training, then validation.

    Args:
        digest: sha256 (hex) of the pixels of these images, in this order.
    """

    train: ImageArrays
    val: ImageArrays
    digest: str


@dataclass(frozen=True)
class ImageSplits:
    """The training and validation images of a run, and facts about them; it holds no test images.

    Args:
        digest: sha256 (hex) of the pixels and labels of exactly these training and validation images.
        row_digest: sha256 (hex) of the pixels of all training images, then all validation images, in the
            order of the rows. The feature cache, which stores a row for each image, depends on it.
        source: Where the images came from, for people.
        val_digest: sha256 (hex) of the pixels and labels of the validation images alone: only runs with the
            same one have comparable scores.
        broken_files: Files that could not be read, relative to the data folder.
        pixel_range: For images of more than 8 bits a channel: the range of values that was scaled to
            0 … 255, by pixel type.
        is_fallback: True where ``data=auto`` fell back to the digits.
        mean: The mean of the training split's pixels per channel, in [0, 1].
        std: Their standard deviation.
        clean_labels: int64 (N,), of the training images, where `data.label_noise` has changed some of
            `train.labels`; None where all are the source's.
        whole: Where a few-shot or long-tailed subset trains: all training images, with the validation images;
            of a fold, the images of all folds as training images. Features that are cached of these are
            those of this run, too.
    """

    name: str
    train: ImageArrays
    val: ImageArrays
    class_names: tuple[str, ...]
    digest: str
    row_digest: str
    source: str
    mean: Triple
    std: Triple
    broken_files: tuple[str, ...] = ()
    pixel_range: PixelRange = field(default_factory=dict)
    is_fallback: bool = False
    val_digest: str = ""
    clean_labels: np.ndarray | None = field(default=None, repr=False)
    whole: Rows | None = field(default=None, repr=False)

    @property
    def rows(self) -> Rows:
        """These images, as the feature cache knows them."""
        return Rows(self.train, self.val, self.row_digest)

    def changed_labels(self) -> list[dict[str, Any]]:
        """Return a row for each training image whose label `data.label_noise` has changed.

        Its keys are row (of the source, `ImageArrays.indices`), image (the file's name, where there is one),
        label (that is trained on) and label_before.
        """
        if self.clean_labels is None:
            return []
        train, names = self.train, self.train.part.names if self.train.part is not None else ()
        return [
            {
                "row": int(train.indices[at]),
                "image": names[train.indices[at]] if names else "",
                "label": self.class_names[train.labels[at]],
                "label_before": self.class_names[self.clean_labels[at]],
            }
            for at in np.flatnonzero(train.labels != self.clean_labels)
        ]

    @property
    def is_multilabel(self) -> bool:
        """Whether an image can have several labels; `class_names` are then the labels'."""
        return self.train.labels.ndim == 2


def build_splits(
    decoded: DecodedSet, config: BaseData, test_fraction: float, is_fallback: bool
) -> ImageSplits:
    """Split a decoded set as `config` says.

    Args:
        test_fraction: The fraction of the training part to set aside if the source has no test part.

    Raises:
        DataError: If a class has too few readable images, or too few for the subset that is asked for.
        ConfigError: If a batch would be larger than a pass over the training split.
    """
    part, names = decoded.parts["train"], decoded.about.class_names
    rows, _ = _train_and_test_rows(decoded, test_fraction)
    if config.folds is not None and "val" in decoded.parts:
        raise DataError(
            f"data.folds={config.folds} divides the training images, and {decoded.about.source} has "
            "validation images of its own: put them among the training images, or leave data.folds out"
        )
    development = rows
    if "val" in decoded.parts:
        val_part = decoded.parts["val"]
        val_rows = _own_rows(decoded, "val")
    elif config.folds is not None:
        val_part, val_rows = part, rows_of_fold(part, rows, config, names)
        rows = np.setdiff1d(rows, val_rows, assume_unique=True)
    else:
        val_part = part
        val_rows = _set_aside(part, rows, config.val_fraction, config.split_seed, names, FOR_VALIDATION)
        rows = np.setdiff1d(rows, val_rows, assume_unique=True)
    if config.train_on_val:
        part, rows = _joined(part, rows, val_part, val_rows)
        val_rows = val_rows[:0]
    every = rows
    rows = choose_subset(part, rows, config, names)
    labels = noisy_labels(part, rows, config, names)
    _check_batch(config, labels)
    if part.targets is not None:
        check_every_label(part, rows, names, "training")
        if len(val_rows):
            check_every_label(val_part, val_rows, names, "validation")
    train_digest = content_digest(part.hashes[rows], labels)  # of the subset, with its noise
    val_digest = content_digest(val_part.hashes[val_rows], val_part.labels_at(val_rows))
    mean, std = _pixel_statistics(part.moments[rows], pixels=part.images.shape[1] * part.images.shape[2])
    return ImageSplits(
        name=decoded.about.name,
        train=arrays_of(part, rows, labels),
        val=arrays_of(val_part, val_rows),
        class_names=names,
        digest=hashlib.sha256(f"{train_digest}\n{val_digest}".encode()).hexdigest(),
        val_digest=val_digest,
        row_digest=_row_digest(part, rows, val_part, val_rows),
        source=decoded.about.source,
        broken_files=decoded.about.broken_files,
        pixel_range=decoded.about.pixel_range,
        is_fallback=is_fallback,
        mean=mean,
        std=std,
        clean_labels=part.labels[rows] if config.label_noise else None,
        whole=_whole(part, development, part, rows[:0])
        if config.folds is not None
        else _whole(part, every, val_part, val_rows)
        if config.takes_subset
        else None,
    )


def _check_batch(config: BaseData, labels: np.ndarray) -> None:
    in_a_pass = images_in_pass(labels, config.sampling)
    if config.batch_size > in_a_pass:
        what = "an under-sampled pass" if config.sampling == "under" else "the training split"
        raise ConfigError(
            f"data.batch_size={config.batch_size} is larger than {what} of {in_a_pass} images; lower it"
        )


def _whole(part: Part, rows: np.ndarray, val_part: Part, val_rows: np.ndarray) -> Rows:
    digest = _row_digest(part, rows, val_part, val_rows)
    return Rows(arrays_of(part, rows), arrays_of(val_part, val_rows), digest)


def _row_digest(part: Part, rows: np.ndarray, val_part: Part, val_rows: np.ndarray) -> str:
    return hashlib.sha256(part.hashes[rows].tobytes() + val_part.hashes[val_rows].tobytes()).hexdigest()


def _joined(part: Part, rows: np.ndarray, val_part: Part, val_rows: np.ndarray) -> tuple[Part, np.ndarray]:
    """Return one part that holds the training and the validation images, and the rows of both."""
    if val_part is part:
        return part, np.union1d(rows, val_rows)
    images, val_images = part.images, val_part.images
    if isinstance(images, ImageFiles) and isinstance(val_images, ImageFiles):
        both: np.ndarray | ImageFiles = replace(images, paths=images.paths + val_images.paths)
    else:
        assert isinstance(images, np.ndarray)
        assert isinstance(val_images, np.ndarray)
        both = np.concatenate([images, val_images])  # in memory, as the source keeps them in two files
    facts = {name: np.concatenate([getattr(part, name), getattr(val_part, name)]) for name in INDEX_FILES}
    names, groups = part.names + val_part.names, part.groups + val_part.groups
    targets = None
    if part.targets is not None and val_part.targets is not None:
        targets = np.concatenate([part.targets, val_part.targets])
    joined = Part(both, **facts, names=names, groups=groups, targets=targets)
    return joined, np.concatenate([rows, val_rows + len(part.labels)])


def build_test(decoded: DecodedSet, test_fraction: float) -> ImageArrays:
    """Return the test split; `harness.data.held_out` is its only caller."""
    if "test" in decoded.parts:
        part = decoded.parts["test"]
        return arrays_of(part, np.flatnonzero(part.labels != BROKEN))
    return arrays_of(decoded.parts["train"], _train_and_test_rows(decoded, test_fraction)[1])


def _train_and_test_rows(decoded: DecodedSet, test_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    part, names = decoded.parts["train"], decoded.about.class_names
    rows = _own_rows(decoded, "train")
    if "test" in decoded.parts:
        return rows, np.empty(0, dtype=np.int64)
    drawn = FOR_TEST if "val" in decoded.parts else FOR_TEST_AND_VALIDATION
    test_rows = _set_aside(part, rows, test_fraction, TEST_SPLIT_SEED, names, drawn)
    return np.setdiff1d(rows, test_rows, assume_unique=True), test_rows


def _own_rows(decoded: DecodedSet, name: PartName) -> np.ndarray:
    """Return the rows of a part's readable images, without copies of images in the parts of `YIELDS_TO`."""
    part, names = decoded.parts[name], decoded.about.class_names
    rows = readable_rows(part, names, name)
    for other in YIELDS_TO[name]:
        if other in decoded.parts:
            held = decoded.parts[other]
            rows = without_duplicates_of(part, rows, held, np.flatnonzero(held.labels != BROKEN))
    if len(rows) == 0:
        raise DataError(f"each of the images for {name} is a copy of a test image; replace them")
    if name == "train":
        _check_classes(part, rows, names)
    return rows


def readable_rows(part: Part, class_names: tuple[str, ...], where: PartName) -> np.ndarray:
    """Return the rows whose image could be read; raise DataError if there are none."""
    rows = np.flatnonzero(part.labels != BROKEN)
    if len(rows) == 0:
        raise DataError(f"none of the {len(part.labels)} images for {where} can be read; replace them")
    if where == "train":
        _check_classes(part, rows, class_names)
    return rows


def _check_classes(part: Part, rows: np.ndarray, class_names: tuple[str, ...]) -> None:
    if part.targets is not None:
        check_every_label(part, rows, class_names, "training")
        return
    counts = np.bincount(part.labels[rows], minlength=len(class_names))
    if not counts.all():
        empty = class_names[int(counts.argmin())]
        raise DataError(
            f"class {empty!r} has no readable training image besides copies of validation and test images; "
            "add some or remove its folder"
        )


def check_every_label(part: Part, rows: np.ndarray, names: tuple[str, ...], where: str) -> None:
    """Check that each label of multi-label images has an image: without one, nothing is learnt or measured.

    Raises:
        DataError: one has none.
    """
    assert part.targets is not None
    counts = part.targets[rows].sum(axis=0, dtype=np.int64)
    if not counts.all():
        missing = [name for name, count in zip(names, counts, strict=True) if not count]
        raise DataError(
            f"{counted(len(missing), 'label has', 'labels have')} no readable {where} image "
            f"({first_few(missing, 3)}): add some, or leave the label out (data.label_columns)"
        )


def arrays_of(part: Part, rows: np.ndarray, labels: np.ndarray | None = None) -> ImageArrays:
    """Return a split of some rows of a part.

    Args:
        labels: Of these rows, see `ImageArrays`; by default the part's.
    """
    labels = part.labels_at(rows) if labels is None else labels
    digest = hashlib.sha256(part.hashes[rows].tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    return ImageArrays(part.images, labels, rows, digest, part)


# ── stratified picks ──────────────────────────────────────────────────────────────────────────────


def _set_aside(
    part: Part,
    rows: np.ndarray,
    fraction: float,
    seed: int,
    names: tuple[str, ...],
    splits: tuple[str, ...],
) -> np.ndarray:
    """Pick `fraction` of the distinct images: of each class at least one and never all.

    Exact copies of the picked images are picked too. Where `data.group_by` is set, whole groups are picked.
    Of multi-label images, the share of each label comes as near to `fraction` as exchanges allow.

    Args:
        splits: that the images are for, the one that is picked here last.
    """
    if part.groups or part.targets is not None:
        return set_aside_groups(part, rows, fraction, seed, names, splits)
    different, first = first_of_duplicates(part, rows)
    labels = part.labels[different]
    sizes = np.bincount(labels, minlength=len(names))
    if sizes.min() < 2:
        scarce = names[int(sizes.argmin())]
        raise DataError(
            f"class {scarce!r} has too few images to be split (at least 3, no copies, are needed); add some"
        )
    count = int(np.clip(round(fraction * len(different)), len(names), len(different) - len(names)))
    picked = different[pick_stratified(labels, allocate(sizes, count, sizes - 1), seed)]
    return rows[np.isin(first, picked)]


# ── normalisation ─────────────────────────────────────────────────────────────────────────────────


def _pixel_statistics(moments: np.ndarray, pixels: int) -> tuple[Triple, Triple]:
    count = len(moments) * pixels
    sums, squares = moments.sum(axis=0).astype(np.float64)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return _triple(mean / 255), _triple(std / 255)


def _triple(values: np.ndarray) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
