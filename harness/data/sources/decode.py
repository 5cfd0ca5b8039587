"""One image file of any mode, depth and size, as a square of 8-bit RGB."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
# Named, so that a file cannot pick a decoder that starts another program (EPS does).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000")
LARGEST_IMAGE = 100_000_000  # pixels; a small file can claim billions
DEEP_MODES = ("I", "F")  # and all that start with "I;16"


def decode_image(path: Path, size: int) -> np.ndarray:
    """Read a file: upright, on white where transparent, shorter side resized, centre cropped.

    Returns:
        uint8 (size, size, 3).

    Raises:
        Exception: Whatever PIL raises at damage; ValueError for images that claim too many pixels.
    """
    with Image.open(path, formats=_formats()) as image:
        if image.width * image.height > LARGEST_IMAGE:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        image.draft(None, (2 * size, 2 * size))  # lets JPEG skip detail that the resize would throw away
        upright = ImageOps.exif_transpose(image)
        return np.asarray(ImageOps.fit(_to_rgb(upright), (size, size), Image.Resampling.BICUBIC))


@cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this build of PIL knows; it fails at names that it does not."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP_MODES or image.mode.startswith("I;16"):
        return _to_8_bit(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale by the depth of the format, not by the content: brightness is information.

    Floats have no depth; they are taken as [0, 1], or as [0, 255] where any value is above 1.
    """
    levels = np.asarray(image).astype(np.float64)
    peak = float(levels.max(initial=0.0))
    if image.mode == "F":
        top = 1.0 if peak <= 1.0 else 255.0
    else:
        top = 2.0**16 - 1 if peak < 2**16 else 2.0**32 - 1
    scaled = np.clip(np.nan_to_num(levels) / top, 0.0, 1.0) * 255
    return Image.fromarray(np.round(scaled).astype(np.uint8))
