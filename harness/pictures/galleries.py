"""Galleries: validation or test images with their true and predicted classes.

`run.py` draws them for a run. Each tile is titled true → predicted (probability); a wrong prediction is
orange and a right one green, and the names tell them apart as well. `examples.py` chooses the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from harness.analysis.figures import drawable_names
from harness.analysis.layout import percent
from harness.analysis.predictions import Predictions, predictions_of
from harness.pictures.examples import (
    best_and_worst,
    confidence,
    confident_mistakes,
    evenly_spread,
    hardest_classes,
    highest_loss,
    suspected_label_errors,
)
from harness.pictures.style import CHARACTER_PX, RIGHT, WRONG, message_figure
from harness.pictures.tiles import GAP_PX, SIDE_PX, Tile, fitted, tiles_figure

Gather = Callable[[np.ndarray], np.ndarray]  # places in the split -> uint8 images (B, H, W, 3)

COLUMNS, MAX_TILES, NUM_EXAMPLES = 8, 24, 16
MAX_CLASSES_SHOWN, IMAGES_PER_CLASS = 10, 4
WEAK_ACCURACY = 0.8  # below it, far more predictions are wrong than labels can be
TILE_COLUMNS = int((SIDE_PX + GAP_PX - 4) / CHARACTER_PX)  # characters that fit above a tile


def highest_loss_gallery(predictions: Predictions, gather: Gather) -> Figure:
    """Draw the images of the highest loss."""
    chosen = highest_loss(predictions, MAX_TILES)
    note = f"{_shown(chosen, len(predictions))} {predictions.split} images, the highest cross-entropy first"
    return gallery(predictions, gather, chosen, "Highest loss", note)


def confident_mistakes_gallery(predictions: Predictions, gather: Gather) -> Figure:
    """Draw the wrong predictions of which the model was surest."""
    title = "Most confident mistakes"
    chosen, num_wrong = confident_mistakes(predictions, MAX_TILES), int((~predictions.correct).sum())
    if not num_wrong:
        return message_figure(
            title, f"None of the {len(predictions):,} {predictions.split} images is predicted wrong."
        )
    note = (
        f"{_shown(chosen, num_wrong)} wrong predictions of {len(predictions):,} {predictions.split} images, "
        "the most probable first"
    )
    return gallery(predictions, gather, chosen, title, note)


def label_errors_gallery(predictions: Predictions, gather: Gather) -> Figure:
    """Draw the images whose labels are suspected to be wrong. It is a suspicion, and the picture says so."""
    title = "Suspected label errors"
    suspects = suspected_label_errors(predictions)
    accuracy = percent(float(predictions.correct.mean()))
    source = f"(cleanlab, confident learning; the model is right on {accuracy} of the images)"
    if not len(suspects):
        message = f"No label of the {len(predictions):,} {predictions.split} images is suspected {source}."
        return message_figure(title, message)
    shown = _shown(suspects[:MAX_TILES], len(suspects))
    own = "The model's own mistakes are among them"
    if predictions.correct.mean() < WEAK_ACCURACY:
        own = "So weak a model makes most of these mistakes itself"
    note = (
        f"A suspicion, not a finding: the model disagrees firmly with {len(suspects):,} labels of "
        f"{len(predictions):,} {predictions.split} images {source}; {shown} are shown. {own}, and errors in "
        "classes of few images may be missing. Look before you change a label."
    )
    return gallery(predictions, gather, suspects[:MAX_TILES], title, note)


def best_and_worst_gallery(predictions: Predictions, gather: Gather) -> Figure:
    """Draw the images of each class with the lowest and the highest loss, for at most ten classes."""
    classes = hardest_classes(predictions, MAX_CLASSES_SHOWN)
    num_present = len(np.unique(predictions.labels))
    pairs = [best_and_worst(predictions, int(label), IMAGES_PER_CLASS) for label in classes]
    images = gather(np.concatenate([np.concatenate(pair) for pair in pairs]))
    tile_of = _tile_maker(predictions)
    rows: list[list[Tile | None]] = []
    for best, worst in pairs:
        row: list[Tile | None] = []
        for chosen in (best, worst[::-1]):
            tiles = [tile_of(int(place), image) for place, image in zip(chosen, images, strict=False)]
            images = images[len(chosen) :]
            empty = [None] * (IMAGES_PER_CLASS - len(chosen))
            row += [*tiles, *empty] if chosen is best else [*empty, *tiles]
        rows.append(row)
    labels, font = drawable_names([predictions.class_names[label] for label in classes])
    row_labels = [
        f"{name}\n{percent(float(predictions.correct[mine].mean()))} of {mine.sum():,}"
        for name, mine in zip(labels, (predictions.labels == label for label in classes), strict=True)
    ]
    part = (
        f"{len(classes)} of {num_present:,} classes are shown, those of the lowest accuracy"
        if len(classes) < num_present
        else f"All {num_present} classes with {predictions.split} images"
    )
    note = f"{part}. Beside a class: its accuracy. In a row, the loss rises from left to right."
    half = IMAGES_PER_CLASS - 1
    columns = ["lowest loss", *[""] * half, *[""] * half, "highest loss"]
    return tiles_figure(
        rows, "Best and worst of each class", note, row_labels=row_labels, column_labels=columns, font=font
    )


def examples_of_split(predictions: Predictions, gather: Gather) -> Figure:
    """Draw the same few images of a split whatever the model, to compare epochs and runs."""
    chosen = evenly_spread(NUM_EXAMPLES, len(predictions))
    some = predictions_of(
        predictions.logits[chosen],
        predictions.labels[chosen],
        split=predictions.split,
        class_names=predictions.class_names,
    )
    return examples_gallery(some, lambda places: gather(chosen[places]))


def examples_gallery(predictions: Predictions, gather: Gather) -> Figure:
    """Draw all images of a few predictions, in their order."""
    right = int(predictions.correct.sum())
    note = (
        f"always the same {len(predictions)} {predictions.split} images; {right} are right, the others framed"
    )
    every = np.arange(len(predictions))
    return gallery(predictions, gather, every, "Examples", note, columns=4, frames=True)


def gallery(
    predictions: Predictions,
    gather: Gather,
    chosen: np.ndarray,
    title: str,
    note: str,
    columns: int = COLUMNS,
    *,
    frames: bool = False,
) -> Figure:
    """Draw the chosen images, each titled true → predicted (probability).

    Args:
        chosen: int64, places in the split, at least one.
        frames: frame the images that are predicted wrong.
    """
    tile_of = _tile_maker(predictions, frames=frames)
    tiles = [tile_of(int(place), image) for place, image in zip(chosen, gather(chosen), strict=True)]
    _, font = drawable_names(predictions.class_names)
    return tiles_figure(_in_rows(tiles, columns), title, note, font=font)


def _tile_maker(predictions: Predictions, *, frames: bool = False) -> Callable[[int, np.ndarray], Tile]:
    names, _ = drawable_names(predictions.class_names)
    probabilities = confidence(predictions)

    def make(place: int, image: np.ndarray) -> Tile:
        true, predicted = predictions.labels[place], predictions.predicted[place]
        color = RIGHT if true == predicted else WRONG
        lines = prediction_lines(names[true], names[predicted], probabilities[place], color)
        return Tile(image, lines, WRONG if frames and true != predicted else None)

    return make


def prediction_lines(
    true: str, predicted: str, probability: float, color: str
) -> tuple[tuple[str, str], ...]:
    """Return the two lines above a tile: the true class, and → the predicted one with its probability."""
    ending = f" ({percent(probability)})"
    return (
        (fitted(true, TILE_COLUMNS), "black"),
        (f"→ {fitted(predicted, TILE_COLUMNS - 2 - len(ending))}{ending}", color),
    )


def _shown(chosen: np.ndarray, total: int) -> str:
    return f"all {total:,}" if len(chosen) == total else f"{len(chosen)} of {total:,}"


def _in_rows(tiles: Sequence[Tile], columns: int) -> list[list[Tile | None]]:
    return [list(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
