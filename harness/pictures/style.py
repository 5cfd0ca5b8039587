"""Colours, sizes and texts that all pictures of a run share.

The other modules of this package draw with them. Every figure is a `matplotlib.figure.Figure`, made without
pyplot's global state.
"""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RIGHT, WRONG, QUIET = "#00694D", "#B34700", "0.35"  # of texts: darker than the palette's, so as to be legible
DPI = 100
FONT_POINTS = 8.0
CHARACTER_PX = FONT_POINTS / 72 * DPI * 0.6  # the mean width of a character


def pixel_figure(width: int, height: int) -> tuple[Figure, Axes]:
    """Return a figure of this many pixels, and axes over all of it whose unit is a pixel, downward."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure, axes


def message_figure(title: str, message: str) -> Figure:
    """Return a picture that says in words why there is nothing to see."""
    lines = textwrap.wrap(message, 90)
    figure, axes = pixel_figure(700, 70 + 18 * len(lines))
    axes.text(16, 16, title, fontsize=11, va="top", weight="bold")
    axes.text(16, 48, "\n".join(lines), fontsize=9, va="top", linespacing=1.4)
    return figure


def to_array(figure: Figure) -> np.ndarray:
    """Return a figure's pixels, uint8 (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
