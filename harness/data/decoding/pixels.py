"""The rule by which pixels of each type become 8-bit RGB.

=============================  =======================================================================
pixels                         become
=============================  =======================================================================
1 bit                          black and white
8 bit: grey, colour, palette   unchanged; CMYK, YCbCr, HSV and LAB by Pillow's conversion
16 bit, grey or colour         0 … 2^b - 1 becomes 0 … 255; b is the smallest of `BIT_DEPTHS` that holds
                               each such value of the data set (12 for a camera's 12 bits in 16-bit files)
32-bit integers                likewise; if any is negative, least … greatest value becomes 0 … 255
floats                         the first of 0 … 1, -1 … 1 and 0 … 255 that contains all finite values of
                               the data set becomes 0 … 255; if none does, or no magnitude exceeds half
                               of its upper end, least … greatest finite value becomes 0 … 255
NaN, -inf                      like the low end of the range
inf                            like the high end of the range
transparent                    shown on white
several frames or pages        the first
=============================  =======================================================================

The range is measured once for the whole data set and not for each image, because brightness is information.
It can be set (`data.pixel_range`), and is recorded with a run, its checkpoints and its exported bundle.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from harness.config.schema import PixelType

PixelRange = Mapping[PixelType, tuple[float, float]]
BIT_DEPTHS = (1, 8, 10, 12, 14, 16, 24, 32)
USUAL_FLOATS = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
TOP_16 = 2.0**16 - 1
NUM_STEPS = 65
PHOTOMETRIC_TAG, WHITE_IS_ZERO = 262, 0  # of TIFF
DEEP_COLOUR = re.compile(r"(RGB|RGBA|RGBX|LA);16[BLN]")  # Pillow's names of 16-bit colour in a file
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


@dataclass(frozen=True)
class ValueRange:
    """The range of an image's finite values, and their type.

    Args:
        steps: `NUM_STEPS` quantiles of the values, by which `is_squeezed` judges the scaling.
        num_odd: The number of values that are NaN or infinite.
    """

    type: PixelType
    low: float
    high: float
    steps: tuple[float, ...] = ()
    num_odd: int = 0


class DeepPixels(NamedTuple):
    """Pixels of more than 8 bits a channel: values (H, W) or (H, W, 3), and alpha of 16 bits."""

    type: PixelType
    values: np.ndarray
    alpha: np.ndarray | None = None


def value_range_of(image: Image.Image) -> ValueRange | None:
    """Return the range of an opened file's values; None for pixels of 8 bits, which need no scaling."""
    deep = _deep_pixels(image)
    return None if deep is None else _value_range(deep)


def _value_range(deep: DeepPixels) -> ValueRange:
    finite = deep.values[np.isfinite(deep.values)]
    num_odd = int(deep.values.size - finite.size)
    if not finite.size:
        return ValueRange(deep.type, 0.0, 0.0, num_odd=num_odd)
    steps = np.quantile(finite, np.linspace(0.0, 1.0, NUM_STEPS), method="nearest").astype(np.float64)
    return ValueRange(deep.type, float(finite.min()), float(finite.max()), tuple(steps.tolist()), num_odd)


def measure(ranges: Iterable[ValueRange]) -> dict[PixelType, tuple[float, float]]:
    """Return the range of each type, by the rule above, for a data set of images with these ranges."""
    widest: dict[PixelType, tuple[float, float]] = {}
    for value_range in ranges:
        low, high = widest.get(value_range.type, (value_range.low, value_range.high))
        widest[value_range.type] = min(low, value_range.low), max(high, value_range.high)
    return {kind: _range_by_rule(kind, *widest[kind]) for kind in sorted(widest)}


def _range_by_rule(kind: PixelType, low: float, high: float) -> tuple[float, float]:
    if kind == "float32":
        fitting = (
            (bottom, top)
            for bottom, top in USUAL_FLOATS
            if bottom <= low and high <= top < 2 * max(high, -low)
        )
        return next(fitting, (low, high if high > low else low + 1))
    if low < 0:
        return low, high if high > low else low + 1
    return 0.0, float(next(2**bits - 1 for bits in BIT_DEPTHS if high < 2**bits))


def is_squeezed(value_range: ValueRange, low: float, high: float) -> bool:
    """Return whether scaling leaves an image a third of its distinct values or fewer: it would look flat.

    Args:
        value_range: The range of the image's values.
        low: The value that becomes 0.
        high: The value that becomes 255.
    """
    before, after = (
        len(set(values)) for values in (value_range.steps, _scale(np.array(value_range.steps), low, high))
    )
    return before > 1 and 3 * after <= before


def to_rgb(image: Image.Image, pixel_range: PixelRange) -> Image.Image:
    """Return 8-bit RGB.

    Args:
        image: Opened from a path, not yet loaded.
        pixel_range: The range of each type; for a missing type, the rule is applied to this image alone.
    """
    deep = _deep_pixels(image)
    if deep is None:
        return _on_white(image.convert("RGBA")) if image.has_transparency_data else image.convert("RGB")
    low, high = pixel_range.get(deep.type) or measure([_value_range(deep)])[deep.type]
    scaled = _scale(deep.values, low, high)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO:
        scaled = 255 - scaled
    shown = Image.fromarray(scaled).convert("RGB")
    if deep.alpha is None:
        return shown
    shown.putalpha(Image.fromarray(_scale(deep.alpha, 0.0, TOP_16)))
    return _on_white(shown)


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    known = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    part = (known - low) / (high - low) if high > low else np.zeros(known.shape)
    return np.round(np.clip(part, 0.0, 1.0) * 255).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


# ── more than 8 bits ──────────────────────────────────────────────────────────────────────────────


def _deep_pixels(image: Image.Image) -> DeepPixels | None:
    if image.mode in ("I", "F"):
        return DeepPixels("int32" if image.mode == "I" else "float32", np.asarray(image))
    if DEEP_COLOUR.fullmatch(packed := _packing(image)):
        colours, alpha = _deep_colours(image, packed)
    elif image.mode.startswith("I;16"):
        colours, alpha = np.asarray(image).astype(np.uint16), None
    else:
        return None
    clear = image.info.get("transparency")  # in PNG: the transparent grey value or colour
    if alpha is None and isinstance(clear, int | tuple):
        is_clear = (colours.reshape(*colours.shape[:2], -1) == np.array(clear)).all(axis=-1)
        alpha = np.where(is_clear, 0, TOP_16).astype(np.uint16)
    return DeepPixels("uint16", colours, alpha)


def _packing(image: Image.Image) -> str:
    """Return Pillow's name for the packing of pixels in a file that is not yet loaded; empty if unknown."""
    names = {tile.args if isinstance(tile.args, str) else tile.args[0] for tile in _tiles(image) if tile.args}
    return str(names.pop()) if len(names) == 1 else ""


def _tiles(image: Image.Image) -> list[Any]:
    return list(getattr(image, "tile", ()))


def _deep_colours(image: Image.Image, packed: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return 16-bit colours and alpha; Pillow by itself would keep only the high bytes.

    Pillow unpacks one of the two bytes of a value: the high one. If it is told the opposite byte order, it
    unpacks the low one. For colours, this function reads the file in both ways and combines the bytes.
    """
    if packed.startswith("LA"):  # four bytes a pixel: of grey, then of alpha, the high one first
        found = _unpack(image, packed, "RGBA").astype(np.uint16)
        return found[..., 0] * 256 + found[..., 1], found[..., 2] * 256 + found[..., 3]
    low = _unpack(image, packed, packed[:-1] + OTHER_BYTE[packed[-1]])
    both = np.asarray(image).astype(np.uint16) * 256 + low
    return both[..., :3], both[..., 3] if packed.startswith("RGBA") else None


def _unpack(image: Image.Image, packed: str, other: str) -> np.ndarray:
    assert isinstance(image, ImageFile), "it was opened from a path"
    assert image.format is not None, "it was opened from a path"
    with Image.open(image.filename, formats=[image.format]) as again:
        again.tile = [
            tile._replace(args=other if tile.args == packed else (other, *tile.args[1:]))
            for tile in _tiles(again)
        ]
        return np.asarray(again)
