"""scikit-learn's handwritten digits: 1,797 real images that are always installed.

Source: https://archive.ics.uci.edu/dataset/80 (its test set, as shipped by scikit-learn).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from harness.data.decoded_cache import DecodedSet, Description, create_images, finish_part, load_or_build

IMAGE_SIZE = 32  # height and width in pixels; the originals have 8
INK_LEVELS = 16
TEST_FRACTION = 0.2


def load(cache_dir: Path) -> DecodedSet:
    """Return the digits as RGB images, in scikit-learn's order, as one training part."""
    return load_or_build(cache_dir, "digits", _build)


def _build(directory: Path) -> Description:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = create_images(directory, "train", (len(digits.images), IMAGE_SIZE, IMAGE_SIZE, 3))
    for row, ink in enumerate(digits.images):
        images[row] = _to_rgb(ink)
    finish_part(directory, "train", images, digits.target)
    return Description("digits", tuple(str(digit) for digit in range(10)), "scikit-learn's load_digits")


def _to_rgb(ink: np.ndarray) -> np.ndarray:
    grey = Image.fromarray(np.round(ink * (255 / INK_LEVELS)).astype(np.uint8))
    resized = grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(resized.convert("RGB"))
