"""Draws the confusion matrix, without a screen and without matplotlib's global state (`pyplot`).

`harness.training.evaluate` records it with a run. Other figures take `drawable_names` from here, commands
with `--output` `save_figure`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from harness.errors import ConfigError

FEW_CLASSES = 20
MOST_NUMBERED = 60  # classes; with more, the confusion matrix has colours without numbers
MOST_DRAWN = 1000  # classes; a matrix of more has less than a pixel for each
CELL_INCHES_FEW, CELL_INCHES_MANY = 0.55, 0.3  # up to FEW_CLASSES, and beyond
DPI = 100
SIDE_PIXELS = 1000  # of a matrix without numbers, at most
NAMES_ON_AXIS = 50  # of such a matrix, at most
COLOURS = "cividis_r"  # colour-blind safe, dark where much is
MAX_NAME_LENGTH = 24  # characters
INCHES_PER_POINT = 1 / 72
# Okabe & Ito (2008), "Color Universal Design": eight colours that all kinds of colour vision tell apart.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
BASE_FONT = "DejaVu Sans"  # always there: it comes with matplotlib


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG where `--output` says, and return its path.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    except OSError as error:
        raise ConfigError(f"cannot write {path} ({error.strerror}): name another with --output") from error
    return path


def confusion_matrix_figure(
    counts_KK: np.ndarray, class_names: Sequence[str], title: str = "", *, in_percent: bool = False
) -> Figure:
    """Draw a confusion matrix: counts as numbers, shares of the true class as colour; nothing where none are.

    The colour rises with the root of the share, so that a few mistakes are told from none and from many.
    With more than 60 classes there are no numbers, and a name at every second, third, … class.

    Args:
        counts_KK: (K, K), row = true class, column = predicted class; K at most 1,000.
        in_percent: write the share of the true class, in percent, in place of the count.
    """
    num_classes = len(class_names)
    is_few, is_numbered = num_classes <= FEW_CLASSES, num_classes <= MOST_NUMBERED
    labels, font = drawable_names(class_names)
    font.set_size(9.0 if is_few else 6.5)
    side = max(2.5, (CELL_INCHES_FEW if is_few else CELL_INCHES_MANY) * num_classes)
    if not is_numbered:  # a whole number of pixels for each cell
        side = max(1, SIDE_PIXELS // num_classes) * num_classes / DPI
    figure, axes = _square_axes(side, names=max(map(_columns, labels)) * font.get_size() * INCHES_PER_POINT)
    shares_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    shown_KK = np.ma.masked_equal(shares_KK, 0.0)
    image = axes.imshow(shown_KK, cmap=COLOURS, norm=PowerNorm(0.5, 0.0, 1.0), interpolation="nearest")
    width = figure.get_figwidth()
    bar = figure.add_axes((1 - 0.85 / width, axes.get_position().y0, 0.2 / width, axes.get_position().height))
    figure.colorbar(image, cax=bar).set_label("share of the true class")
    _write_names(axes, labels, font, every=1 if is_numbered else -(-num_classes // NAMES_ON_AXIS))
    if is_numbered:
        _write_numbers(axes, counts_KK, shares_KK, font.get_size(), in_percent)
    accuracy = counts_KK.trace() / max(counts_KK.sum(), 1)
    axes.set_title(f"{title + ': ' if title else ''}{accuracy:.1%} of {counts_KK.sum():,} right", fontsize=11)
    return figure


def _square_axes(side: float, names: float) -> tuple[Figure, Axes]:
    """Return a figure around square axes.

    Placed by hand, as matplotlib's automatic layout takes a minute for 100 classes.

    Args:
        side: of the axes, in inches.
        names: the length of the longest class name, in inches.
    """
    margin = names + 0.55  # below and to the left: the classes' names and the axis' own
    width, height = side + margin + 1.1, side + margin + 0.4
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    figure.text(0.12 / width, (margin + side / 2) / height, "true", rotation=90, va="center")
    figure.text((margin + side / 2) / width, 0.1 / height, "predicted", ha="center")
    return figure, axes


def _columns(label: str) -> float:
    """Return the approximate width of a label, as a multiple of the font size."""
    return sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in label)


def _write_names(axes: Axes, labels: Sequence[str], font: FontProperties, every: int) -> None:
    places = range(0, len(labels), every)
    axes.set_xticks(places, labels[::every], rotation=90, fontproperties=font)
    axes.set_yticks(places, labels[::every], fontproperties=font)
    axes.tick_params(length=0 if every == 1 else 3)
    if every > 1:
        return
    edges, ends = np.arange(1, len(labels)) - 0.5, (-0.5, len(labels) - 0.5)
    axes.hlines(edges, *ends, color="0.85", linewidth=0.4)  # so that a count can be followed to its name
    axes.vlines(edges, *ends, color="0.85", linewidth=0.4)


def _write_numbers(
    axes: Axes, counts_KK: np.ndarray, shares_KK: np.ndarray, font_size: float, in_percent: bool
) -> None:
    # Numbers of five digits and more must stay in their cells.
    shrunk = font_size * min(1.0, 4 / len(str(counts_KK.max())))
    for row, column in np.argwhere(counts_KK > 0):
        color = "white" if shares_KK[row, column] > 0.25 else "black"
        share = 100 * shares_KK[row, column]
        number = f"{share:.0f}" if share >= 1 else "<1"
        text = number if in_percent else str(counts_KK[row, column])
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=shrunk)


def drawable_names(class_names: Sequence[str]) -> tuple[list[str], FontProperties]:
    """Return the labels and the fonts for them; a name that no installed font can draw becomes its number."""
    names = [_shortened(name) for name in class_names]
    characters = frozenset("".join(names))
    fonts = _upright_fonts()
    missing = _missing(fonts[BASE_FONT], characters)
    extra = _font_for(missing) if missing else None
    still_missing = _missing(fonts[extra], missing) if extra else missing
    labels = [f"#{number}" if set(name) & still_missing else name for number, name in enumerate(names)]
    return labels, FontProperties(family=[BASE_FONT, extra] if extra else [BASE_FONT])


def _shortened(name: str) -> str:
    # No accidental mathematics.
    return without_middle(" ".join(name.split()), MAX_NAME_LENGTH).replace("$", r"\$")


def without_middle(name: str, length: int) -> str:
    """Return a name of at most `length` characters: of a longer one, the middle is left out."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 3
    return name[: length - 1 - tail] + "…" + name[len(name) - tail :]


@lru_cache(maxsize=16)
def _font_for(characters: frozenset[str]) -> str | None:
    """Return the installed font that draws most of these characters, or None if none draws any."""
    best, fewest_missing = None, len(characters)
    for name, path in sorted(_upright_fonts().items()):
        missing = len(_missing(path, characters))
        if missing < fewest_missing:
            best, fewest_missing = name, missing
        if missing == 0:
            break
    return best


def _upright_fonts() -> dict[str, str]:
    """Return the file of each font family, except "Last Resort", which draws every character as a box."""
    plain = [
        e for e in font_manager.fontManager.ttflist if e.style == "normal" and e.weight in (400, "normal")
    ]
    return {entry.name: entry.fname for entry in plain if "Last Resort" not in entry.name}


def _missing(path: str, characters: frozenset[str]) -> frozenset[str]:
    font = font_manager.get_font(path)
    return frozenset(c for c in characters if not font.get_char_index(ord(c)))
