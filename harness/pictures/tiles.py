"""Draws a grid of images with a few words above each, as one picture.

`galleries.py` and `gradcam.py` lay out their images with it. All images are copied into one array, which is
drawn at once: an `Axes` for each image would take ten times as long.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from harness.analysis.figures import without_middle
from harness.pictures.style import CHARACTER_PX, FONT_POINTS, QUIET, pixel_figure

SIDE_PX = 128
GAP_PX, LINE_PX, MARGIN_PX, HEADER_PX = 16, 14, 16, 58
FRAME_PX, TEXT_PX = 5, 8  # around an image; between an image and the text above it


@dataclass(frozen=True)
class Tile:
    """An image and the lines above it.

    Args:
        image: uint8 (H, W, 3).
        lines: each a text and its colour.
        frame: the colour of a frame around the image, which shows where the text is too small to read.
    """

    image: np.ndarray
    lines: tuple[tuple[str, str], ...] = ()
    frame: str | None = None


def tiles_figure(
    rows: Sequence[Sequence[Tile | None]],
    title: str,
    note: str,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    font: FontProperties | None = None,
    side: int = SIDE_PX,
) -> Figure:
    """Draw rows of tiles.

    Args:
        rows: None leaves a place empty.
        note: a line below the title: what is shown, of how many, what is left out; long ones are wrapped.
        row_labels: a label on the left of each row; line breaks are kept.
        font: of the lines and labels, for names in any script.
        side: about the longer side of a shown image, in pixels; small images are enlarged by a whole number.
    """
    shown = [[None if t is None else replace(t, image=_scaled(t.image, side)) for t in row] for row in rows]
    tiles = [tile for row in shown for tile in row if tile is not None]
    num_columns = max(len(row) for row in shown)
    image_height = max(tile.image.shape[0] for tile in tiles)
    column = max(tile.image.shape[1] for tile in tiles) + GAP_PX
    text = max(len(tile.lines) for tile in tiles) * LINE_PX + (
        TEXT_PX + 2 if any(t.lines for t in tiles) else 0
    )
    left = MARGIN_PX + (int(max(_longest_line(label) for label in row_labels)) + 12 if row_labels else 0)
    width = max(left + num_columns * column - GAP_PX + MARGIN_PX, 640)
    note_lines = _wrapped(note, width - 2 * MARGIN_PX)
    top = HEADER_PX + LINE_PX * (len(note_lines) - 1) + (LINE_PX + 4 if column_labels else 0)
    row_height = text + image_height + GAP_PX
    height = top + len(shown) * row_height + 4

    figure, axes = pixel_figure(width, height)
    axes.text(MARGIN_PX, 12, title, fontsize=12, va="top", weight="bold")
    axes.text(MARGIN_PX, 36, "\n".join(note_lines), fontsize=9, va="top", color=QUIET)
    font = (font or FontProperties()).copy()
    font.set_size(FONT_POINTS)
    for number, label in enumerate(column_labels):
        middle = left + number * column + (column - GAP_PX) / 2
        axes.text(middle, top - 6, label, fontproperties=font, ha="center", va="bottom", color=QUIET)
    canvas = np.full((height, width, 3), 255, np.uint8)
    for number, row in enumerate(shown):
        y = top + number * row_height + text
        if row_labels:
            axes.text(MARGIN_PX, y + image_height / 2, row_labels[number], fontproperties=font, va="center")
        for place, tile in enumerate(row):
            if tile is not None:
                _put(canvas, axes, tile, left + place * column, y, column - GAP_PX, font)
    figure.figimage(canvas, zorder=-1)  # below the texts; not resampled, as `imshow` would
    return figure


def _put(canvas: np.ndarray, axes: Axes, tile: Tile, x: int, y: int, slot: int, font: FontProperties) -> None:
    height, width = tile.image.shape[:2]
    start = x + (slot - width) // 2
    if tile.frame is not None:
        framed = np.s_[y - FRAME_PX : y + height + FRAME_PX, start - FRAME_PX : start + width + FRAME_PX]
        canvas[framed] = (255 * np.array(to_rgb(tile.frame))).round().astype(np.uint8)
    canvas[y : y + height, start : start + width] = tile.image
    for number, (text, color) in enumerate(reversed(tile.lines)):
        axes.text(
            x + slot / 2,
            y - TEXT_PX - number * LINE_PX,
            text,
            fontproperties=font,
            color=color,
            ha="center",
            va="bottom",
        )


def fitted(name: str, columns: float) -> str:
    """Return a name that takes at most this many columns (of a Latin character).

    A longer one loses its middle, because names of classes often begin alike.
    """
    plain = name.replace(r"\$", "$")
    if width_of(plain) <= columns:
        return name
    kept = len(plain)
    while kept > 1 and width_of(shortened := without_middle(plain, kept)) > columns:
        kept -= 1
    return shortened.replace("$", r"\$")


def width_of(text: str) -> float:
    """Return the columns of a text; Chinese, Japanese and Korean characters take two."""
    return sum(1.7 if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in text)


def _longest_line(label: str) -> float:
    return max(width_of(line) for line in label.splitlines()) * CHARACTER_PX


def _wrapped(note: str, width: int) -> list[str]:
    limit = int(width / (CHARACTER_PX * 9 / FONT_POINTS))
    lines = [""]
    for word in note.split(" "):  # not at non-breaking spaces
        if len(lines[-1]) + 1 + len(word) > limit and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return lines


def _scaled(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """Return an image of about a size: enlarged pixel by pixel, or reduced with antialiasing."""
    height, width = image_HWC.shape[:2]
    longest = max(height, width)
    if longest <= side:
        factor = max(1, round(side / longest))
        return image_HWC.repeat(factor, axis=0).repeat(factor, axis=1)
    share = side / longest
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.LANCZOS))
