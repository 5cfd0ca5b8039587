"""`harness data`: describes a data set by counts, statistics and digest, and draws samples of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from harness.config.schema import AugmentConfig, DataConfig
from harness.data.datamodule import ImageDataModule
from harness.data.decoded_cache import DecodedSet, Description
from harness.data.duplicates import Side, describe_duplicates, near_duplicates
from harness.data.epochs import images_in_pass
from harness.data.features.cache import clear_features, list_features
from harness.data.groups import GroupSizes, group_sizes
from harness.data.held_out import load_test
from harness.data.load import load_decoded, load_splits, resolve_auto
from harness.data.messages import counted, muted_warnings, printable
from harness.data.splits import ImageArrays, ImageSplits

SAMPLES_PER_CLASS = 8
CLASSES_SHOWN = 20
NAMES_SHOWN = 20


@dataclass(frozen=True)
class DataSummary:
    """What a data set holds. As text, it is what `harness data` prints."""

    splits: ImageSplits
    test: ImageArrays
    about: Description
    notices: list[str]  # about what trains, the tree, its pixels, and images that occur more than once
    pictures: list[Path]
    groups: GroupSizes | None = None  # where data.group_by is set

    @property
    def counts(self) -> dict[str, tuple[int, int, int]]:
        """The training, validation and test images of each class, or with each label."""
        names = self.splits.class_names
        columns = [_per_class(split, len(names)) for split in (self.splits.train, self.splits.val, self.test)]
        per_class = zip(*(column.tolist() for column in columns), strict=True)
        return dict(zip(names, per_class, strict=True))

    def __str__(self) -> str:
        return "\n".join(
            [
                *_facts(self.splits, self.about),
                *([f"groups     {self.groups}"] if self.groups else []),
                "",
                *_counts(self),
                *([""] if self.notices else []),
                *(f"note       {line}" for line in self.notices),
                *_listed("file cannot be read", "files cannot be read", self.splits.broken_files),
                *_passed_over(self.about),
                *_pictures(self.splits, self.pictures),
            ]
        )


def summarise(config: DataConfig, output_dir: Path, *, augment: AugmentConfig | None = None) -> DataSummary:
    """Describe a data set and write ``samples.png``, one row of training images per class.

    Args:
        augment: If given, ``samples_augmented.png`` shows the same images as training would see them.

    Raises:
        DataError: If the images are missing, damaged or unusable.
    """
    config = resolve_auto(config)
    with muted_warnings():
        splits, test, decoded = load_splits(config), load_test(config), load_decoded(config)
    output_dir.mkdir(parents=True, exist_ok=True)
    positions = _sample_positions(splits)
    samples = torch.from_numpy(splits.train.gather(positions)).permute(0, 3, 1, 2)
    pictures = [_write_grid(samples, output_dir / "samples.png")]
    if augment is not None:
        module = ImageDataModule(splits, config, augment, seed=0)
        labels = torch.from_numpy(splits.train.labels[positions])
        augmented, _ = module.mix(module.augment(samples, epoch=0, batch_index=0), labels, 0, 0)
        pictures.append(_write_grid(augmented, output_dir / "samples_augmented.png"))
    sides = {"train": splits.train.side, "val": splits.val.side, "test": test.side}
    groups = group_sizes(sides, decoded.parts.values()) if decoded.parts["train"].groups else None
    notices = [*_selection(splits, config), *_notices(decoded, sides)]
    return DataSummary(splits, test, decoded.about, notices, pictures, groups)


def summarise_features(config: DataConfig, *, clear: bool) -> str:
    """List the cached features of frozen backbones, the least recently used first, or remove them all."""
    cache_dir = Path(config.cache_dir)
    stored = list_features(cache_dir)
    if clear:
        return f"removed {len(stored)} entries, {clear_features(cache_dir) / 1e9:.2f} GB"
    lines = [
        f"{entry.folder.name}  {datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}  "
        f"{entry.num_bytes / 1e9:7.2f} GB  {entry.about['model']} at {entry.about['image_size']} px "
        f"on {entry.about['data']}, {entry.about['views']} views"
        for entry in stored
    ]
    total = sum(entry.num_bytes for entry in stored) / 1e9
    lines.append(f"{len(stored)} entries, {total:.2f} of {config.feature_cache_gb:g} GB, in {cache_dir}")
    return "\n".join(lines)


def _facts(splits: ImageSplits, about: Description) -> list[str]:
    height, width = splits.train.images.shape[1:3]
    kind = "labels" if splits.is_multilabel else "classes"
    return [
        f"data set   {splits.name}, {len(splits.class_names)} {kind}, {height} x {width} pixels",
        f"source     {splits.source}",
        *([f"layout     {about.layout}"] if about.layout else []),
        f"mean       {_rounded(splits.mean)}   (training split, red green blue, in [0, 1])",
        f"deviation  {_rounded(splits.std)}",
        f"digest     {splits.digest}",
    ]


def _rounded(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.5f}" for value in values)


def _counts(summary: DataSummary) -> list[str]:
    """Return a table of images per class and split."""
    rows = [(name, *counts) for name, counts in summary.counts.items()]
    rows.append(("total", len(summary.splits.train), len(summary.splits.val), len(summary.test)))
    width = max(len(str(row[0])) for row in rows)
    kind = "label" if summary.splits.is_multilabel else "class"  # one image can count for several labels
    header = f"{kind:<{width}}  {'train':>7}  {'val':>7}  {'test':>7}"
    return [
        header,
        *(f"{name:<{width}}  {train:>7,}  {val:>7,}  {held:>7,}" for name, train, val, held in rows),
    ]


def _per_class(split: ImageArrays, num_classes: int) -> np.ndarray:
    if split.labels.ndim == 2:
        return split.labels.sum(axis=0).astype(np.int64)
    return np.bincount(split.labels, minlength=num_classes)


def _selection(splits: ImageSplits, config: DataConfig) -> list[str]:
    """Return notes about a subset, wrong labels, and the sampling of the training images."""
    count, lines = len(splits.train), []
    if splits.whole is not None:
        lines.append(f"a subset: {count:,} of {len(splits.whole.train):,} training images train")
    if changed := splits.changed_labels():
        lines.append(
            f"{len(changed):,} of {count:,} training images have a wrong label by data.label_noise; the "
            "table counts the labels that are trained on"
        )
    if config.sampling != "natural":
        visited = images_in_pass(splits.train.labels, config.sampling)
        lines.append(
            f"data.sampling={config.sampling}: a pass visits {visited:,} images, of each class equally many"
        )
    return lines


def _notices(decoded: DecodedSet, sides: Mapping[str, Side]) -> list[str]:
    """Return notes about the tree, its pixels, and images that occur more than once."""
    return [*decoded.about.notices, *describe_duplicates(decoded), *near_duplicates(sides)]


def _passed_over(about: Description) -> list[str]:
    names = tuple(f"{printable(path)}: {why}" for path, why in about.passed_over)
    return _listed("file or folder is not used", "files or folders are not used", names)


def _listed(one: str, many: str, names: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    more = [f"  and {len(names) - NAMES_SHOWN:,} more"] if len(names) > NAMES_SHOWN else []
    return ["", f"{counted(len(names), one, many)}:", *(f"  {name}" for name in names[:NAMES_SHOWN]), *more]


def _pictures(splits: ImageSplits, paths: list[Path]) -> list[str]:
    shown = min(len(splits.class_names), CLASSES_SHOWN)
    kind = "labels" if splits.is_multilabel else "classes"
    return ["", *(f"wrote {path}: one row for each of {shown} {kind}" for path in paths)]


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────


def _sample_positions(splits: ImageSplits) -> np.ndarray:
    """Return the first training images of each class; small classes repeat theirs to fill their row."""
    rows = []
    for label in range(min(len(splits.class_names), CLASSES_SHOWN)):
        labels = splits.train.labels
        members = np.flatnonzero(labels == label if labels.ndim == 1 else labels[:, label])
        rows.append(np.resize(members, SAMPLES_PER_CLASS))
    return np.concatenate(rows)


def _write_grid(images_BCHW: Tensor, path: Path) -> Path:
    if images_BCHW.is_floating_point():
        images_BCHW = (images_BCHW * 255).round().to(torch.uint8)
    grid = make_grid(images_BCHW, nrow=SAMPLES_PER_CLASS, padding=2, pad_value=255)
    picture = Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())
    if images_BCHW.shape[-1] <= 64:  # small images are shown at twice their size
        picture = picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)
    picture.save(path)
    return path
