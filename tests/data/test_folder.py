"""Trees of image files: every layout, every kind of image, every kind of damage."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.config.schema import FolderData
from harness.data import load_splits
from harness.data.decoding import decode
from harness.data.decoding.decode import decode_image
from harness.data.held_out import load_test
from harness.data.sources import folder
from harness.data.sources.layout import read_layout
from harness.errors import DataError, HarnessError

Tree = Callable[..., Path]


def config_of(root: Path, **changes: object) -> FolderData:
    fields = {"dir": str(root), "cache_dir": str(root.parent / "cache"), "decode_size": 16, "batch_size": 2}
    return FolderData.model_validate({**fields, **changes})


# ── layouts ───────────────────────────────────────────────────────────────────────────────────────


def test_one_tree_is_split_in_three(image_tree: Tree) -> None:
    config = config_of(image_tree({"cat": 30, "dog": 20}), test_fraction=0.2, val_fraction=0.25)
    splits, test = load_splits(config), load_test(config)
    assert np.bincount(test.labels).tolist() == [6, 4]
    assert np.bincount(splits.val.labels).tolist() == [6, 4]
    assert np.bincount(splits.train.labels).tolist() == [18, 12]
    rows = np.concatenate([splits.train.indices, splits.val.indices, test.indices])
    assert sorted(rows) == list(range(50))


def test_the_test_images_do_not_move_with_the_validation_split(image_tree: Tree) -> None:
    root = image_tree({"cat": 30, "dog": 20})
    one, two = config_of(root, split_seed=1), config_of(root, split_seed=2, val_fraction=0.3)
    np.testing.assert_array_equal(load_test(one).indices, load_test(two).indices)
    assert load_splits(one).digest != load_splits(two).digest


@pytest.mark.parametrize("val_name", ["val", "valid", "validation"])
def test_given_splits_are_used_as_they_are(image_tree: Tree, val_name: str) -> None:
    counts = {"train/cat": 5, "train/dog": 4, f"{val_name}/cat": 2, f"{val_name}/dog": 3, "test/dog": 2}
    config = config_of(image_tree(counts))
    splits = load_splits(config)
    assert np.bincount(splits.train.labels).tolist() == [5, 4]
    assert np.bincount(splits.val.labels).tolist() == [2, 3]
    assert load_test(config).labels.tolist() == [1, 1]


def test_class_names_of_any_script(image_tree: Tree) -> None:
    splits = load_splits(config_of(image_tree({"grey cat": 5, "狗": 5, "žába": 5})))
    assert splits.class_names == ("grey cat", "žába", "狗")


def test_other_files_are_passed_over(image_tree: Tree) -> None:
    root = image_tree({"cat": 5, "dog": 5, ".git": 2, "__MACOSX": 3, "cat/.thumbs": 1})
    (root / "README.txt").write_text("hello")
    (root / "cat" / "notes.txt").write_text("hello")
    (root / "cat" / "._1.png").write_bytes(b"resource fork")
    splits = load_splits(config_of(root))
    assert splits.class_names == ("cat", "dog")
    assert splits.broken_files == ()
    assert len(read_layout(root).files) == 10


def test_subfolders_belong_to_their_class(image_tree: Tree) -> None:
    root = image_tree({"cat/2024": 5, "cat/2025": 4, "dog": 5})
    assert len(read_layout(root).files) == 14
    assert load_splits(config_of(root)).class_names == ("cat", "dog")


# ── the cache ─────────────────────────────────────────────────────────────────────────────────────


def test_a_changed_tree_is_decoded_anew(image_tree: Tree) -> None:
    root = image_tree({"cat": 5, "dog": 5})
    before = load_splits(config_of(root))
    Image.new("RGB", (9, 9), "red").save(root / "cat" / "0.png")
    assert load_splits(config_of(root)).digest != before.digest


def test_an_unchanged_tree_is_decoded_once(image_tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_tree({"cat": 5, "dog": 5})
    before = load_splits(config_of(root))
    monkeypatch.setattr(folder, "decode_image", None)
    assert load_splits(config_of(root)).digest == before.digest
    with pytest.raises(DataError):  # another size is another cache, and now nothing can be decoded
        load_splits(config_of(root, decode_size=8))


# ── errors ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no folder"),
        ({"cat": 0, "dog": 0}, "no images"),
        ({"cat": 5}, "one class only"),
        ({"train/cat": 5, "val/cat": 2}, "one class only"),
        ({"train/cat": 5, "train/dog": 5, "val/frog": 2}, "'frog'"),
        ({"val/cat": 5, "test/cat": 5}, "no train"),
        ({"cat": 5, "dog": 1}, "'dog' has too few images"),
        ({"cat": 5, "dog": 2}, "'dog' has too few images"),
    ],
)
def test_unusable_trees_get_one_line(image_tree: Tree, counts: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_splits(config_of(image_tree(counts)))
    assert "\n" not in str(caught.value)


def test_nothing_readable(image_tree: Tree) -> None:
    root = image_tree({"cat": 3, "dog": 3})
    for path in root.rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match="none of the 6 images"):
        load_splits(config_of(root))


def test_a_class_with_nothing_readable(image_tree: Tree) -> None:
    root = image_tree({"cat": 9, "dog": 3})
    for path in (root / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="'dog' has no readable"):
        load_splits(config_of(root))


def test_a_batch_larger_than_the_training_split(image_tree: Tree) -> None:
    with pytest.raises(HarnessError, match=r"data\.batch_size=64 is larger than the training split of 29"):
        load_splits(config_of(image_tree({"cat": 20, "dog": 20}), batch_size=64))


# ── odd files ─────────────────────────────────────────────────────────────────────────────────────


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_broken_files_are_listed_and_left_out(image_tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = image_tree({"猫 cat": 8, "dog": 8})
    cats = root / "猫 cat"
    (cats / "text.png").write_text("this is text")
    (cats / "empty.png").write_bytes(b"")
    (cats / "cut.png").write_bytes((cats / "0.png").read_bytes()[:120])
    (cats / "bomb.png").write_bytes(png_that_claims(60_000, 60_000))
    (cats / "large.png").write_bytes(png_that_claims(11_000, 11_000))
    (cats / "vector.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (cats / "dangling.png").symlink_to("nowhere.png")
    config = config_of(root)
    with caplog.at_level(logging.WARNING):
        splits, test = load_splits(config), load_test(config)
    names = ("bomb", "cut", "dangling", "empty", "large", "text", "vector")
    assert splits.broken_files == tuple(f"猫 cat/{name}.png" for name in names)
    assert "7 of 23 image files" in caplog.text
    assert "猫 cat/bomb.png" in caplog.text
    assert len(splits.train) + len(splits.val) + len(test) == 16
    assert min(splits.train.labels.min(), splits.val.labels.min(), test.labels.min()) == 0


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (30, 40)).save(tmp_path / "intact.png")
    decode_image(tmp_path / "intact.png", 8)
    monkeypatch.setattr(decode, "LARGEST_IMAGE", 1199)
    with pytest.raises(ValueError, match="30 x 40 pixels are too many"):
        decode_image(tmp_path / "intact.png", 8)


def ramp(top: int, dtype: type) -> np.ndarray:
    return np.linspace(0, top, 256).round().astype(dtype).reshape(16, 16)


def save(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    image.save(path, **options)
    return decode_image(path, 16).astype(np.int64)


def assert_near(decoded: np.ndarray, expected: np.ndarray, tolerance: int = 1) -> None:
    assert decoded.shape == (16, 16, 3)
    grey = expected[..., None] if expected.ndim == 2 else expected
    assert np.abs(decoded - grey.astype(np.int64)).max() <= tolerance


def test_grey_levels_survive_every_depth(tmp_path: Path) -> None:
    expected = ramp(255, np.uint8)
    eight = Image.fromarray(expected)
    sixteen = Image.fromarray(ramp(65535, np.uint16))
    assert_near(save(eight, tmp_path / "8.png"), expected)
    assert_near(save(sixteen, tmp_path / "16.png"), expected)
    assert_near(save(sixteen, tmp_path / "16.tif"), expected)
    assert_near(save(Image.fromarray(ramp(65535, np.int32)), tmp_path / "32.tif"), expected)
    assert_near(save(Image.fromarray(np.float32(expected / 255)), tmp_path / "float.tif"), expected)
    assert_near(save(eight.convert("RGB"), tmp_path / "rgb.bmp"), expected)


def test_transparency_shows_white(tmp_path: Path) -> None:
    rgba = np.zeros((16, 16, 4), dtype=np.uint8)
    rgba[..., 0] = 200
    rgba[8:, :, 3] = 255
    expected = np.full((16, 16, 3), 255)
    expected[8:] = (200, 0, 0)
    image = Image.fromarray(rgba)
    assert_near(save(image, tmp_path / "rgba.png"), expected)
    assert_near(save(image.quantize(8), tmp_path / "palette.png"), expected, tolerance=4)
    grey = np.where(expected[..., :1] == 255, 255, 60).squeeze()
    assert_near(save(image.convert("LA"), tmp_path / "la.png"), grey)


def test_palette_one_bit_cmyk_and_gif(tmp_path: Path) -> None:
    stripes = np.zeros((16, 16, 3), dtype=np.uint8)
    stripes[:, :8] = (255, 0, 0)
    image = Image.fromarray(stripes)
    assert_near(save(image.convert("P", palette=Image.Palette.ADAPTIVE), tmp_path / "p.png"), stripes)
    assert_near(save(image.convert("P", palette=Image.Palette.ADAPTIVE), tmp_path / "p.gif"), stripes)
    assert_near(save(image.convert("CMYK"), tmp_path / "cmyk.tif"), stripes)
    bits = stripes[..., 0]
    assert_near(save(Image.fromarray(bits).convert("1"), tmp_path / "bits.png"), bits)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    upright = np.rot90(pixels, k=-1)
    decoded = save(Image.fromarray(pixels), tmp_path / "turned.jpg", exif=exif, quality=100)
    assert_near(decoded, upright, tolerance=8)


def test_the_centre_of_a_wide_image_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[:, 16:32] = 255
    assert save(Image.fromarray(pixels), tmp_path / "wide.png").min() == 255
    assert save(Image.fromarray(pixels.transpose(1, 0, 2)), tmp_path / "tall.png").min() == 255


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (300, 2), (2000, 1500)])
def test_any_size_becomes_the_same_square(tmp_path: Path, size: tuple[int, int]) -> None:
    assert_near(
        save(Image.new("RGB", size, (9, 99, 199)), tmp_path / "any.png"), np.full((16, 16, 3), (9, 99, 199))
    )


def test_large_jpegs_are_read_in_draft_without_a_visible_change(tmp_path: Path) -> None:
    gradient = np.linspace(0, 255, 1024).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(gradient, (1024, 1))] * 3, axis=-1))
    image.save(tmp_path / "large.jpg", quality=95)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    assert_near(decode_image(tmp_path / "large.jpg", 16).astype(np.int64), expected, tolerance=4)
