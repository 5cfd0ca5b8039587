"""Decodes one image file of any format, mode, bit depth and size to a square of 8-bit RGB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import ExifTags, Image, ImageOps

from harness.data.decoding.pixels import PixelRange, ValueRange, to_rgb, value_range_of

# Formats that Pillow opens but cannot decode itself; for EPS it would start another program.
NO_IMAGES = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"})
LARGEST_IMAGE = 100_000_000  # pixels; a small file can claim billions
MAGIC_BYTES = 16  # at the start of a file, by which Pillow recognises its format
NO_RANGE: PixelRange = MappingProxyType({})


@dataclass(frozen=True)
class Inspection:
    """The facts about a file that are collected from all files before the data set is decoded."""

    value_range: ValueRange | None  # None: pixels of 8 bits, which need no range
    has_frames: bool  # the file holds several frames, of which the first is decoded


def decode_image(path: Path, size: int, pixel_range: PixelRange = NO_RANGE) -> np.ndarray:
    """Decode a file to 8-bit RGB (see `pixels.py`), turned upright, resized and cropped to a square.

    Args:
        pixel_range: The data set's range of values for each pixel type. For a type without one, the range is
            measured on this file alone.

    Returns:
        uint8 (size, size, 3).

    Raises:
        Exception: Whatever PIL raises for a damaged file; ValueError for images that claim too many pixels.
    """
    with _open(path) as image:
        image.draft(None, (2 * size, 2 * size))  # lets JPEG skip detail that the resize would throw away
        shown = to_rgb(image, pixel_range)
        turned = image.getexif().get(ExifTags.Base.Orientation)
        if turned is not None:
            shown.getexif()[ExifTags.Base.Orientation] = turned
            shown = ImageOps.exif_transpose(shown)
        return np.asarray(ImageOps.fit(shown, (size, size), Image.Resampling.BICUBIC))


def inspect_image(path: Path) -> Inspection:
    """Read a file's header, and its pixels if they have more than 8 bits a channel.

    Raises:
        Exception: The same as from `decode_image`.
    """
    with _open(path) as image:
        has_frames = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        return Inspection(value_range_of(image), has_frames)


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    with Image.open(path, formats=_formats_of(path)) as image:
        if image.width * image.height > LARGEST_IMAGE:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        yield image


# ── which files are images ────────────────────────────────────────────────────────────────────────


def is_image(path: Path) -> bool:
    """Tell whether a file is an image by its suffix, or else by its content, whatever it is called."""
    if _format_named(path.suffix.lower()) is not None:
        return True
    try:
        with path.open("rb") as file:
            start = file.read(MAGIC_BYTES)
        if not any(_accepts(name, start) for name in _formats_with_magic()):
            return False
        with _open(path):
            return True
    except Exception:  # a file of another kind can make a reader raise anything
        return False


def _formats_of(path: Path) -> list[str]:
    """Return the formats that a file may have; those without magic bytes are recognised by the suffix."""
    named = _format_named(path.suffix.lower())
    return [*_formats_with_magic(), *([named] if named else ())]


@cache
def _formats_with_magic() -> tuple[str, ...]:
    """Return the formats that Pillow, with its plugins, can decode and recognises by a file's first bytes."""
    Image.init()
    return tuple(name for name in Image.ID if name not in NO_IMAGES and Image.OPEN[name][1] is not None)


@cache
def _format_named(suffix: str) -> str | None:
    Image.init()
    name = Image.EXTENSION.get(suffix)
    return name if name in Image.OPEN and name not in NO_IMAGES else None


def _accepts(name: str, start: bytes) -> bool:
    accept = Image.OPEN[name][1]
    return accept is not None and len(start) == MAGIC_BYTES and accept(start) is True
