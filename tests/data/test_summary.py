"""The summary that people read, and its pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from harness.config.schema import AugmentConfig, DigitsData, FolderData
from harness.data import load_splits
from harness.data.features.cache import open_features
from harness.data.features.entry import EntryLayout
from harness.data.summary import SAMPLES_PER_CLASS, summarise, summarise_features


def test_counts_statistics_and_digest(tmp_path: Path) -> None:
    config = DigitsData(cache_dir=str(tmp_path / "cache"))
    splits = load_splits(config)
    text = str(summarise(config, tmp_path / "out"))
    assert splits.digest in text
    assert f"{splits.mean[0]:.5f}" in text
    totals = next(line.split()[1:] for line in text.splitlines() if line.startswith("total"))
    assert sum(int(number.replace(",", "")) for number in totals) == 1797
    zeros = next(line.split() for line in text.splitlines() if line.startswith("0 "))
    assert sum(map(int, zeros[1:])) == 178  # of load_digits


def test_the_grid_shows_one_row_per_class(tmp_path: Path) -> None:
    config = DigitsData(cache_dir=str(tmp_path / "cache"))
    summarise(config, tmp_path / "out")
    grid = np.asarray(Image.open(tmp_path / "out" / "samples.png"))
    cell = 2 * (32 + 2)
    assert grid.shape == (10 * cell + 4, SAMPLES_PER_CLASS * cell + 4, 3)
    splits = load_splits(config)
    sevens = splits.train.gather(np.flatnonzero(splits.train.labels == 7)[:2])
    row = grid[7 * cell + 4 : 7 * cell + 4 + 64 : 2]
    np.testing.assert_array_equal(row[:, 4:68:2], sevens[0])
    np.testing.assert_array_equal(row[:, cell + 4 : cell + 68 : 2], sevens[1])
    assert not (tmp_path / "out" / "samples_augmented.png").exists()


def test_augmented_samples_and_broken_files(tmp_path: Path, image_tree: Callable[..., Path]) -> None:
    root = image_tree({"a b": 8, "猫": 8}, size=(40, 40))
    (root / "a b" / "no.png").write_text("text")
    config = FolderData(dir=str(root), cache_dir=str(tmp_path / "cache"), decode_size=32, batch_size=4)
    augment = AugmentConfig(flip=True, crop_padding=4, brightness=0.5)
    text = str(summarise(config, tmp_path / "out", augment=augment))
    assert "1 file cannot be read" in text
    assert "a b/no.png" in text
    assert "猫" in text
    plain, augmented = (
        np.asarray(Image.open(tmp_path / "out" / name)) for name in ("samples.png", "samples_augmented.png")
    )
    assert plain.shape == augmented.shape
    assert (plain != augmented).any()


def test_cached_features_are_listed_and_removed(tmp_path: Path) -> None:
    about = {"model": "resnet18", "image_size": 64, "data": "digits", "views": 2}
    open_features(
        tmp_path, "key", 1000, lambda: EntryLayout(1000, {"depth0": ((500,), "float16")}, about), 1e9
    )
    config = DigitsData(cache_dir=str(tmp_path))

    listed = summarise_features(config, clear=False)
    removed = summarise_features(config, clear=True)

    assert "resnet18 at 64 px on digits, 2 views" in listed
    assert "1 entries, 0.00 of 20 GB" in listed
    assert removed == "removed 1 entries, 0.00 GB"
    assert summarise_features(config, clear=False).startswith("0 entries")
