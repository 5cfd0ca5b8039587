"""A map of the features: images that the network sees alike lie close to each other.

`run.py` draws it. The features are those that the last layer receives; t-SNE or, for few images, a principal
component analysis lays them out in the plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.transforms import Bbox

from harness.analysis.figures import OKABE_ITO, drawable_names
from harness.analysis.predictions import Predictions
from harness.models import ImageClassifier
from harness.pictures.examples import hardest_classes
from harness.pictures.galleries import Gather
from harness.pictures.layers import Probed, in_eval_mode, to_device
from harness.pictures.style import DPI, QUIET
from harness.pictures.tiles import fitted

MAX_IMAGES = 1000  # t-SNE of 1,000 takes 2.5 s on one core, of 1,500 4.3 s
MAX_LARGE = 400  # of images of more than SMALL_SIDE pixels on a CPU, which reads some 30 a second
SMALL_SIDE = 96
MAX_OTHERS = 4  # of so many images, at most one is of a class without a colour
FEWEST_FOR_TSNE = 100
FEWEST_NAMED = 3  # images of a class whose name is written among them
COMPONENTS = 50  # of PCA, before t-SNE, as its authors advise
COLORS, MARKERS = (*OKABE_ITO[:-1], "#8c8c8c"), ("o", "^", "s")  # grey: an edge shows on it, not on black
MAX_CLASSES = len(COLORS) * len(MARKERS)
BATCH = 64
SEED = 0


@dataclass(frozen=True)
class Layout:
    """Places in the plane, float (N, 2), and the method that found them."""

    points: np.ndarray
    method: str


def embedding_figure(classifier: ImageClassifier, predictions: Predictions, gather: Gather) -> Figure:
    """Draw a map of the features of at most 1,000 images, coloured by true class.

    Beyond 24 classes, those of the lowest accuracy are coloured and the others are grey.
    """
    present = np.unique(predictions.labels)
    coloured = hardest_classes(predictions, MAX_CLASSES)
    is_slow = classifier.image_size > SMALL_SIDE and next(classifier.parameters()).device.type == "cpu"
    chosen = sample(predictions.labels, coloured, MAX_LARGE if is_slow else MAX_IMAGES)
    layout = lay_out(penultimate_features(classifier, gather, chosen))
    labels, wrong = predictions.labels[chosen], ~predictions.correct[chosen]

    figure = Figure(figsize=(10.5, 8), dpi=DPI)
    axes = figure.add_axes((0.02, 0.02, 0.76, 0.86))
    (x, y), others = layout.points.T, ~np.isin(labels, coloured)
    axes.scatter(x[others], y[others], s=8, color="0.9", linewidths=0)
    names, font = drawable_names([predictions.class_names[label] for label in coloured])
    for place, label in enumerate(coloured):
        mine = labels == label
        color, marker = COLORS[place % len(COLORS)], MARKERS[place // len(COLORS)]
        for part, size, edge in ((mine & ~wrong, 16, 0.2), (mine & wrong, 20, 0.9)):
            axes.scatter(
                x[part],
                y[part],
                s=size,
                color=color,
                marker=marker,
                edgecolors="black",
                linewidths=edge,
            )
        axes.scatter(
            [], [], s=30, color=color, marker=marker, label=fitted(names[place], 22), edgecolors="black"
        )
    if others.any():
        axes.scatter([], [], s=30, color="0.9", label="other classes")
    axes.scatter([], [], s=34, color="white", edgecolors="black", linewidths=1.2, label="thick edge: wrong")
    _name_groups(axes, [layout.points[labels == label] for label in coloured], names, font)
    axes.set_xticks([])
    axes.set_yticks([])
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, prop=_sized(font, 8.5))
    legend.set_title("true class", prop=FontProperties(size=9))
    figure.text(0.02, 0.965, "Map of the features", fontsize=12, weight="bold", va="top")
    cap = (
        ""
        if len(coloured) == len(present)
        else f"; {len(coloured)} of {len(present):,} classes are coloured, those of the lowest accuracy"
    )
    note = (
        f"{len(chosen):,} of {len(predictions):,} {predictions.split} images, {layout.method}{cap}.\n"
        "Neighbours look alike to the network; sizes of groups and distances between them mean little."
    )
    figure.text(0.02, 0.935, note, fontsize=9, va="top", color=QUIET, linespacing=1.4)
    return figure


def _name_groups(
    axes: Axes, groups: Sequence[np.ndarray], names: Sequence[str], font: FontProperties
) -> None:
    """Write names at the image nearest to the middle of their group, the largest group first.

    Not at the mean, which for a class in two groups would lie in neither. A name that would cover another is
    left to the legend.
    """
    renderer = FigureCanvasAgg(axes.figure).get_renderer()  # type: ignore[arg-type]
    taken: list[Bbox] = []
    for number in sorted(range(len(groups)), key=lambda number: -len(groups[number])):
        points = groups[number]
        if len(points) < FEWEST_NAMED:
            continue
        x, y = points[np.argmin(np.abs(points - np.median(points, axis=0)).sum(axis=1))]
        name = fitted(names[number], 16)
        text = axes.text(x, y, name, ha="center", va="center", fontproperties=_sized(font, 9))
        text.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="white")])
        box = text.get_window_extent(renderer)
        frame = axes.get_window_extent(renderer)
        is_inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
        if is_inside and not any(box.overlaps(other) for other in taken):
            taken.append(box)
        else:
            text.remove()


def _sized(font: FontProperties, size: float) -> FontProperties:
    font = font.copy()
    font.set_size(size)
    return font


def sample(labels_N: np.ndarray, coloured: np.ndarray, count: int) -> np.ndarray:
    """Return the places of at most `count` images, seeded; at most a quarter are of uncoloured classes."""
    generator = np.random.default_rng(SEED)
    order = generator.permutation(len(labels_N))
    is_coloured = np.isin(labels_N[order], coloured)
    first, others = order[is_coloured], order[~is_coloured][: count // MAX_OTHERS]
    return np.sort(np.concatenate([first[: count - len(others)], others]))


def penultimate_features(classifier: ImageClassifier, gather: Gather, places_N: np.ndarray) -> np.ndarray:
    """Return what the network's last layer receives for each image: float32 (N, D)."""
    probed = Probed(classifier)
    parts = []
    with torch.no_grad(), in_eval_mode(classifier):
        for start in range(0, len(places_N), BATCH):
            images = to_device(classifier, gather(places_N[start : start + BATCH]))
            parts.append(probed.vectors(images).float().cpu())
    return torch.cat(parts).numpy()


def lay_out(features_ND: np.ndarray) -> Layout:
    """Return places in the plane: by t-SNE, or by PCA if there are fewer than 100 images. Deterministic."""
    from sklearn.decomposition import PCA

    plane = np.zeros((len(features_ND), 2))
    if not np.ptp(features_ND, axis=0).any():
        return Layout(plane, "all features are equal")
    count = min(COMPONENTS, *features_ND.shape)
    components = PCA(count, random_state=SEED).fit_transform(features_ND.astype(np.float64))
    if len(features_ND) < FEWEST_FOR_TSNE or count < 2:
        plane[:, : min(2, count)] = components[:, :2]
        return Layout(plane, "principal components")
    from sklearn.manifold import TSNE

    tsne = TSNE(2, init="pca", perplexity=30, random_state=SEED, n_jobs=1)
    return Layout(tsne.fit_transform(components), "t-SNE (perplexity 30)")
