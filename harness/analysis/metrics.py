"""Metrics of a classifier on a split, from its logits or probabilities.

`harness/training/module.py` computes them after each epoch, `harness/training/evaluate.py` after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support


def split_metrics(logits_NK: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Return every metric that is reported of a split: the loss, and those of `classification_metrics`.

    Args:
        logits_NK: (N, K), finite.
        labels_N: (N,), integers in [0, K).

    Raises:
        ValueError: as :func:`classification_metrics`.
    """
    log_probabilities_NK = log_softmax(logits_NK.astype(np.float64), axis=1)
    others = classification_metrics(np.exp(log_probabilities_NK), labels_N)
    loss = -log_probabilities_NK[np.arange(len(labels_N)), labels_N].mean()
    return {"loss": float(loss), **others}


def classification_metrics(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Return accuracy and macro precision, recall, F1 and one-vs-rest AUC.

    The macro averages are over the classes that occur in the labels or the predictions, as in scikit-learn;
    a ratio 0/0 counts as 0. The AUC is averaged over the classes that occur in the labels; it is NaN if only
    one does.

    Args:
        probabilities_NK: (N, K), or any score that rises with the probability. Of equal scores of an image,
            the class with the lower number is predicted.
        labels_N: (N,), integers in [0, K).

    Raises:
        ValueError: shapes differ, there are no images, a label is out of range or a score is not finite.

    Source: `sklearn.metrics.precision_recall_fscore_support`.
    """
    _check(probabilities_NK, labels_N)
    predictions_N = probabilities_NK.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels_N, predictions_N, average="macro", zero_division=0
    )
    return {
        "accuracy": float((predictions_N == labels_N).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "auc": _macro_auc(probabilities_NK, labels_N),
    }


def confusion_matrix_counts(predictions_N: np.ndarray, labels_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Return how often each true class (row) was predicted as each class (column): int64, (K, K)."""
    return confusion_matrix(labels_N, predictions_N, labels=range(num_classes)).astype(np.int64)


def per_class_table(
    predictions_N: np.ndarray, labels_N: np.ndarray, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row per class, in the classes' order: class, precision, recall, f1, support (its images)."""
    columns = precision_recall_fscore_support(
        labels_N, predictions_N, labels=range(len(class_names)), zero_division=0
    )
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(class_names, *columns, strict=True)
    ]


def _macro_auc(scores_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """Return the mean one-vs-rest AUC over the classes that occur, each from the ranks of its scores.

    The AUC is the Mann-Whitney U statistic divided by the number of pairs; equal scores get their mean rank.
    scikit-learn's `roc_auc_score` builds a curve for each class, which is slow after every epoch where there
    are a thousand classes.
    """
    present, counts = np.unique(labels_N, return_counts=True)
    if len(present) < 2:
        return float("nan")
    sorted_KN = np.sort(scores_NK.T, axis=1)
    areas = []
    for k, num_positive in zip(present, counts, strict=True):
        own = scores_NK[labels_N == k, k]
        below, not_above = (np.searchsorted(sorted_KN[k], own, side=side) for side in ("left", "right"))
        ranks = (below + not_above + 1) / 2
        wins = ranks.sum() - num_positive * (num_positive + 1) / 2
        areas.append(wins / (num_positive * (len(labels_N) - num_positive)))
    return float(np.mean(areas))


def _check(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> None:
    if probabilities_NK.ndim != 2 or labels_N.shape != probabilities_NK.shape[:1]:
        raise ValueError(f"expected (N, K) and (N,), got {probabilities_NK.shape} and {labels_N.shape}")
    if not len(labels_N):
        raise ValueError("no images to measure on")
    if labels_N.min() < 0 or labels_N.max() >= probabilities_NK.shape[1]:
        raise ValueError(f"labels must lie in [0, {probabilities_NK.shape[1]})")
    if not np.isfinite(probabilities_NK).all():
        raise ValueError("probabilities hold NaN or infinity")
