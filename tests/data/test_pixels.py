"""Pixels of every type become 8-bit RGB by one rule, and what it decided is said."""

from __future__ import annotations

import logging
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from harness.config.schema import FolderData
from harness.data import as_loaded, load_splits
from harness.data.decoding.decode import decode_image, inspect_image
from harness.data.decoding.pixels import measure
from harness.data.held_out import load_test
from harness.errors import ConfigError, DataError

SIDE = 16
Levels = np.ndarray  # float (16, 16): what an image shows, in [0, 1]


def ramp() -> Levels:
    return np.linspace(0.0, 1.0, SIDE * SIDE).reshape(SIDE, SIDE)


def png(values: np.ndarray, path: Path, extra: bytes = b"") -> Path:
    """Write 16-bit grey, grey and alpha, RGB or RGBA, which Pillow itself cannot."""
    height, width = values.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.size // (height * width)]

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    )
    return path


def tiff(values: np.ndarray, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, "TIFF", **options)
    return path


def assert_shows(path: Path, expected: np.ndarray, tolerance: int = 1, **options: Any) -> None:
    decoded = decode_image(path, SIDE, **options).astype(np.int64)
    wanted = np.round(expected * 255).astype(np.int64)
    assert np.abs(decoded - (wanted[..., None] if wanted.ndim == 2 else wanted)).max() <= tolerance


def config_of(root: Path, **changes: object) -> FolderData:
    fields = {"dir": str(root), "cache_dir": str(root.parent / "cache"), "decode_size": SIDE, "batch_size": 1}
    return FolderData.model_validate({**fields, **changes})


def all_images(config: FolderData) -> np.ndarray:
    splits = load_splits(config)
    return np.concatenate(
        [part.gather(slice(None)) for part in (splits.train, splits.val, load_test(config))]
    )


# ── one file ──────────────────────────────────────────────────────────────────────────────────────


def test_one_nan_or_infinite_pixel_changes_itself_alone(tmp_path: Path) -> None:
    for odd, shown in ((np.nan, 0.0), (-np.inf, 0.0), (np.inf, 1.0)):
        values, expected = np.float32(ramp()), ramp()
        values[3, 4], expected[3, 4] = odd, shown
        assert_shows(tiff(values, tmp_path / "odd.tif"), expected)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-1, 1), (0, 255), (0, 0.02), (0, 2), (0, 5000), (-1024, 3071), (1e-3, 2.0)]
)
def test_floats_of_any_range_keep_their_levels(tmp_path: Path, low: float, high: float) -> None:
    assert_shows(tiff(np.float32(low + ramp() * (high - low)), tmp_path / "float.tif"), ramp())


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_cameras_bits_in_a_16_bit_file_keep_their_levels(tmp_path: Path, bits: int) -> None:
    values = np.round(ramp() * (2**bits - 1)).astype(np.uint16)
    assert_shows(png(values, tmp_path / "grey.png"), ramp())
    assert_shows(tiff(values, tmp_path / "grey.tif"), ramp())
    assert_shows(tiff(values, tmp_path / "packed.tif", compression="tiff_lzw"), ramp())
    assert_shows(tiff(values.astype(np.int32), tmp_path / "int32.tif"), ramp())


def test_16_bit_colour_keeps_what_is_below_its_high_bytes(tmp_path: Path) -> None:
    colours = np.stack([ramp(), 1 - ramp(), ramp().T], axis=-1)
    values = np.round(colours * 4095).astype(np.uint16)
    assert_shows(png(values, tmp_path / "colour.png"), colours)
    opaque = np.full((SIDE, SIDE, 1), 65535)
    assert_shows(png(np.concatenate([values, opaque], axis=-1), tmp_path / "rgba.png"), colours)
    half = np.concatenate([values, opaque // 2], axis=-1)
    assert_shows(png(half, tmp_path / "half.png"), 0.5 + colours / 2)
    grey = np.stack([values[..., 0], opaque[..., 0]], axis=-1)
    assert_shows(png(grey, tmp_path / "grey-and-alpha.png"), ramp())


def test_signed_integers_are_not_black(tmp_path: Path) -> None:
    values = np.round(-1024 + ramp() * 4095).astype(np.int32)  # as of computed tomography
    assert_shows(tiff(values, tmp_path / "ct.tif"), ramp())


def test_white_may_be_zero(tmp_path: Path) -> None:
    values = np.round(ramp() * 65535).astype(np.uint16)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0
    path = tiff(values, tmp_path / "white.tif", tiffinfo=info)
    if Image.open(path).tag_v2[262] != 0:  # type: ignore[attr-defined]
        pytest.skip("this Pillow does not write it")
    assert_shows(path, 1 - ramp())


def test_a_transparent_16_bit_value_shows_white(tmp_path: Path) -> None:
    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", 2) + b"tRNS" + content + struct.pack(">I", zlib.crc32(b"tRNS" + content))

    values = np.round(ramp() * 65535).astype(np.uint16)
    expected = ramp()
    expected[0, 0] = 1.0
    assert_shows(png(values, tmp_path / "clear.png", chunk(b"\0\0")), expected)


def test_deep_images_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.round(ramp() * 65535).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "turned.png", exif=exif)
    assert_shows(tmp_path / "turned.png", np.rot90(ramp(), k=-1))
    assert_shows(tiff(values, tmp_path / "turned.tif", exif=exif), np.rot90(ramp(), k=-1))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_8_bits_are_what_pillow_shows_them_as(tmp_path: Path, mode: str) -> None:
    colours = np.stack([ramp(), 1 - ramp(), ramp().T], axis=-1)
    picture = Image.fromarray(np.round(colours * 255).astype(np.uint8))
    if mode == "LAB":
        picture = Image.fromarray(np.full((SIDE, SIDE, 3), 128, np.uint8), mode)
    else:
        picture = picture.convert("L").convert(mode) if mode in ("LA", "PA") else picture.convert(mode)
    path = tmp_path / "eight.tif"
    try:
        picture.save(path)
    except (OSError, KeyError):
        pytest.skip(f"Pillow writes no {mode}")
    assert inspect_image(path).value_range is None
    np.testing.assert_array_equal(decode_image(path, SIDE), np.asarray(picture.convert("RGB")))


# ── a data set ────────────────────────────────────────────────────────────────────────────────────


def write_set(root: Path, tops: list[float], dtype: type = np.uint16) -> Path:
    """Write six images of two classes for each value that is to be their greatest."""
    for number, top in enumerate(tops):
        for name in ("a", "b"):
            for copy in range(3):
                values = np.roll(ramp(), 3 * number + copy + 7 * (name == "b")) * top
                tiff(values.astype(dtype), root / name / f"{number}-{copy}.tif")
    return root


def test_the_range_is_the_data_sets_so_that_dark_images_stay_dark(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(write_set(tmp_path / "set", [4095, 400]))
    brightest = sorted(all_images(config).max(axis=(1, 2, 3)).tolist())
    assert brightest == [25] * 6 + [255] * 6
    assert load_splits(config).pixel_range == {"uint16": (0.0, 4095.0)}
    assert caplog.text.count("12 images of uint16 pixels: 0 … 4095 becomes 0 … 255") == 1


def test_a_chosen_range_wins_and_what_it_flattens_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(write_set(tmp_path / "set", [4095]), pixel_range={"uint16": [0, 65535]})
    with caplog.at_level(logging.WARNING):
        assert all_images(config).max() == 16
    assert "6 images of uint16 pixels lose most of their levels so" in caplog.text
    with pytest.raises((ConfigError, ValueError), match="must be below the high end"):
        config_of(tmp_path, pixel_range={"uint16": [5, 5]})


def test_a_mark_for_missing_values_does_not_flatten_images_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_set(tmp_path / "set", [300.0], np.float32)
    values = np.float32(ramp() * 300)
    values[:6] = -3.4e38
    tiff(values, root / "a" / "marked.tif")
    with pytest.raises(DataError, match="too few images"):  # all are equal now
        load_splits(config_of(root))
    assert "7 images of float32 pixels lose most of their levels so" in caplog.text


def test_odd_pixels_and_further_frames_are_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_set(tmp_path / "set", [1.0], np.float32)
    tiff(np.where(ramp() > 0.5, np.nan, ramp()).astype(np.float32), root / "a" / "nan.tif")
    frames = [Image.fromarray(np.full((9, 9), level, np.uint8)) for level in (9, 99)]
    frames[0].save(root / "b" / "pages.tif", save_all=True, append_images=frames[1:])
    load_splits(config_of(root))
    assert (
        "1 image with pixels that are NaN or infinite, shown as the range's ends (a/nan.tif)" in caplog.text
    )
    assert "1 file of several frames or pages: the first is taken (b/pages.tif)" in caplog.text


def test_the_measured_range_is_settled_with_the_run_and_gives_the_same_images_anywhere(
    tmp_path: Path,
) -> None:
    config = config_of(write_set(tmp_path / "set", [4095, 400]))
    splits = load_splits(config)
    settled = as_loaded(config, splits)
    assert isinstance(settled, FolderData)
    assert settled.pixel_range == {"uint16": (0.0, 4095.0)}
    again = load_splits(FolderData.model_validate(settled.model_dump(mode="json")))
    assert again.digest == splits.digest
    streamed = load_splits(config.model_copy(update={"max_memory_share": 0.0}))
    assert streamed.digest == splits.digest
    np.testing.assert_array_equal(streamed.train.gather(slice(None)), splits.train.gather(slice(None)))


# ── any values ────────────────────────────────────────────────────────────────────────────────────

RANGES = {
    "uint16": st.integers(0, 2**16 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "float32": st.floats(width=32, allow_nan=True, allow_infinity=True),
}


@st.composite
def deep_images(draw: st.DrawFn) -> np.ndarray:
    kind = draw(st.sampled_from(sorted(RANGES)))
    values = draw(
        st.lists(RANGES[kind], min_size=64, max_size=64) | st.lists(RANGES[kind], min_size=2, max_size=2)
    )
    return np.resize(np.array(values, dtype=kind), (8, 8))


def check_any_deep_image(values: np.ndarray) -> None:
    """Finite values keep their order and reach both ends; the rest shows as an end."""
    with tempfile.TemporaryDirectory() as folder:
        path = tiff(values, Path(folder) / "any.tif")
        decoded = decode_image(path, 8)[..., 0]
        extent = inspect_image(path).value_range
    assert extent is not None
    finite = np.isfinite(values)
    low, high = measure([extent])[extent.type]
    if finite.any():
        assert low <= values[finite].min() <= values[finite].max() <= high
    order = np.argsort(values[finite], kind="stable")
    assert (np.diff(decoded[finite][order].astype(np.int64)) >= 0).all()
    assert (decoded[np.isnan(values)] == 0).all()
    if finite.any() and np.ptp(values[finite].astype(np.float64)) * 2 > high - low > 0:
        assert np.ptp(decoded[finite]) >= 127, "values that span the range must not come out flat"


@given(deep_images())
@settings(max_examples=40, deadline=None)
def test_deep_pixels_of_any_value_keep_their_order(values: np.ndarray) -> None:
    check_any_deep_image(values)


@pytest.mark.slow
@given(deep_images())
@settings(max_examples=2000, deadline=None)
def test_deep_pixels_of_any_value_keep_their_order_thousands_of_times(values: np.ndarray) -> None:
    check_any_deep_image(values)
