"""Chooses the images of a split that are worth a look, from the model's predictions.

`galleries.py`, `gradcam.py` and `embedding.py` draw what is chosen here. Every choice is deterministic: of
equals, the first image comes first.
"""

from __future__ import annotations

import warnings

import numpy as np

from harness.analysis.predictions import Predictions


def highest_loss(predictions: Predictions, count: int) -> np.ndarray:
    """Return the images of the highest loss, the highest first: int64, at most `count`."""
    return np.argsort(-predictions.loss, kind="stable")[:count]


def confident_mistakes(predictions: Predictions, count: int) -> np.ndarray:
    """Return the wrong predictions, the most probable first: int64, at most `count`."""
    wrong = np.flatnonzero(~predictions.correct)
    return wrong[np.argsort(-confidence(predictions)[wrong], kind="stable")][:count]


def confident_hits(predictions: Predictions, count: int) -> np.ndarray:
    """Return right predictions, the most probable of each class first, then the second of each: int64."""
    right = np.flatnonzero(predictions.correct)
    right = right[np.argsort(-confidence(predictions)[right], kind="stable")]
    seen: dict[int, int] = {}
    turn = np.zeros(len(right), dtype=np.int64)
    for place, label in enumerate(predictions.labels[right].tolist()):
        turn[place] = seen[label] = seen.get(label, -1) + 1
    return right[np.argsort(turn, kind="stable")][:count]


def best_and_worst(predictions: Predictions, label: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a class's images with the lowest and with the highest loss; no image is in both.

    Returns:
        Best, the lowest loss first; worst, the highest first; of fewer than 2 × `count` images, half each.
    """
    own = np.flatnonzero(predictions.labels == label)
    own = own[np.argsort(predictions.loss[own], kind="stable")]
    num_best = min(count, (len(own) + 1) // 2)
    num_worst = min(count, len(own) - num_best)
    return own[:num_best], own[len(own) - num_worst :][::-1]


def hardest_classes(predictions: Predictions, count: int) -> np.ndarray:
    """Return the classes of the lowest accuracy among those that have images, in the order of classes.

    Of classes of equal accuracy, those with more images come first.
    """
    images_K = np.bincount(predictions.labels, minlength=len(predictions.class_names))
    hits_K = np.bincount(predictions.labels[predictions.correct], minlength=len(images_K))
    present = np.flatnonzero(images_K)
    accuracy = hits_K[present] / images_K[present]
    return np.sort(present[np.lexsort((-images_K[present], accuracy))[:count]])


def suspected_label_errors(predictions: Predictions) -> np.ndarray:
    """Return the images whose labels are suspected to be wrong, the most suspicious first: int64.

    The predictions must be of images that the model was not trained on.
    Source: Northcutt et al. (2021), "Confident learning", as cleanlab implements it.
    """
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings():
        # Of a class with very few images, cleanlab warns that it may overlook errors. The gallery says so.
        warnings.simplefilter("ignore", UserWarning)
        found = find_label_issues(
            predictions.labels,
            np.exp(predictions.log_probabilities),
            return_indices_ranked_by="self_confidence",
            n_jobs=1,
        )
    return np.asarray(found, dtype=np.int64)


def evenly_spread(count: int, num_images: int) -> np.ndarray:
    """Return the places of a fixed handful of images, evenly spread over a split: int64."""
    return np.unique(np.linspace(0, num_images - 1, min(count, num_images)).round().astype(np.int64))


def confidence(predictions: Predictions) -> np.ndarray:
    """Return the probability of each predicted class: float64 (N,)."""
    rows = np.arange(len(predictions))
    return np.asarray(np.exp(predictions.log_probabilities[rows, predictions.predicted]))
