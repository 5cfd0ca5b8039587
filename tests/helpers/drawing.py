"""A matplotlib figure as pixels."""

from __future__ import annotations

import io
import warnings

import numpy as np
from matplotlib.figure import Figure
from PIL import Image


def drawn(figure: Figure) -> np.ndarray:
    """Return the picture, uint8 (H, W, 3), with every warning an error (a missing glyph warns)."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))
