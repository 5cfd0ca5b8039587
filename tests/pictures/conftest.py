"""Predictions and pixels to draw, and checks of a drawn figure."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.analysis.predictions import Predictions, predictions_of


def some_predictions(num_classes: int = 4, count: int = 60, *, margin: float = 1.0) -> Predictions:
    """Return predictions of random images; a larger margin gives fewer mistakes."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % num_classes
    logits = generator.normal(size=(count, num_classes)).astype(np.float32)
    logits[np.arange(count), labels] += margin
    names = [f"class {number}" for number in range(num_classes)]
    return predictions_of(logits, labels, split="val", class_names=names)


def gather(places: np.ndarray) -> np.ndarray:
    """Return images of 8×8 pixels, each of the grey value of its place."""
    return np.repeat(places.astype(np.uint8), 8 * 8 * 3).reshape(-1, 8, 8, 3)


def noise(places: np.ndarray, size: int = 32) -> np.ndarray:
    """Return images of noise, the same at each call."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (len(places), size, size, 3), dtype=np.uint8)


def texts_of(figure: Figure) -> list[str]:
    """Return the texts of a figure, with those of its axes and their legends."""
    texts = [*figure.texts]
    for axes in figure.axes:
        legend = axes.get_legend()
        texts += [*axes.texts, axes.title, *(legend.get_texts() if legend else [])]
    return [text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in texts]


def note_of(figure: Figure) -> str:
    """Return all texts of a figure in one line."""
    return " ".join(" ".join(texts_of(figure)).split())


def assert_no_overlap(figure: Figure) -> None:
    """Check that no text covers another, and that all lie inside the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [t for t in [*(t for axes in figure.axes for t in axes.texts), *figure.texts] if t.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    for number, box in enumerate(boxes):
        name = texts[number].get_text()
        assert box.x0 >= -1, name
        assert box.y0 >= -1, name
        assert box.x1 <= figure.bbox.x1 + 1, name
        assert box.y1 <= figure.bbox.y1 + 1, name
        for other, neighbour in zip(boxes[number + 1 :], texts[number + 1 :], strict=True):
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            # Lines share the room of descenders and ascenders.
            assert width <= 1 or height <= 4, (name, neighbour.get_text())
