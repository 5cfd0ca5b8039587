"""Metrics of a classifier on a split, from its logits or probabilities.

`harness/training/module.py` computes `split_metrics` after each epoch; `evaluation.py` adds `further_metrics`
and the table of classes once, after training. Calibration is in `calibration.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support

TOP = 5  # the classes among which the true one counts as found, in top5_accuracy


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


def further_metrics(
    probabilities_NK: np.ndarray, labels_N: np.ndarray, areas: Sequence[dict[str, float]]
) -> dict[str, float]:
    """Return the metrics that are computed once, after training.

    - ``top5_accuracy``, with more than 5 classes. Of equal probabilities the lower class comes first, as in
      the accuracy. (scikit-learn's `top_k_accuracy_score` takes the higher one: its top 5 may miss an image
      that the accuracy counts as right.)
    - ``balanced_accuracy``: the mean recall of the classes that occur in the labels. ``recall`` is the mean
      over the classes that occur in the labels or the predictions.
    - ``precision_weighted``, ``recall_weighted``, ``f1_weighted``: weighted by the classes' images.
    - ``average_precision``: one-vs-rest, the mean over the classes that occur in the labels.

    Args:
        probabilities_NK: (N, K).
        labels_N: (N,), integers in [0, K).
        areas: as `one_vs_rest_areas` returns them.

    Source: `sklearn.metrics.balanced_accuracy_score`, `precision_recall_fscore_support`,
        `average_precision_score`.
    """
    _check(probabilities_NK, labels_N)
    predictions_N = probabilities_NK.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels_N, predictions_N, average="weighted", zero_division=0
    )
    present, counts = np.unique(labels_N, return_counts=True)
    hits = np.bincount(labels_N[predictions_N == labels_N], minlength=probabilities_NK.shape[1])
    found = {
        "balanced_accuracy": float((hits[present] / counts).mean()),
        "precision_weighted": float(precision),
        "recall_weighted": float(recall),
        "f1_weighted": float(f1),
        "average_precision": float(np.mean([areas[k]["average_precision"] for k in present])),
    }
    if probabilities_NK.shape[1] > TOP:
        found["top5_accuracy"] = float((_rank_of_label(probabilities_NK, labels_N) < TOP).mean())
    return found


def _rank_of_label(scores_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Return how many classes stand before the true one, the lower of equal classes first: int64 (N,)."""
    own_N1 = scores_NK[np.arange(len(labels_N)), labels_N][:, None]
    is_lower_NK = np.arange(scores_NK.shape[1]) < labels_N[:, None]
    return np.asarray(((scores_NK > own_N1) | ((scores_NK == own_N1) & is_lower_NK)).sum(axis=1))


def one_vs_rest_areas(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> list[dict[str, float]]:
    """Return the ROC AUC and the average precision of each class against all others.

    Both are NaN for a class without images. The AUC is NaN for a class that all images belong to, too.
    """
    auc_K = one_vs_rest_auc(probabilities_NK, labels_N)
    present = set(labels_N.tolist())
    return [
        {
            "auc": float(auc_K[k]),
            "average_precision": float(average_precision_score(labels_N == k, probabilities_NK[:, k]))
            if k in present
            else float("nan"),
        }
        for k in range(probabilities_NK.shape[1])
    ]


def confusion_matrix_counts(predictions_N: np.ndarray, labels_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Return how often each true class (row) was predicted as each class (column): int64, (K, K)."""
    return confusion_matrix(labels_N, predictions_N, labels=range(num_classes)).astype(np.int64)


def per_class_table(
    predictions_N: np.ndarray,
    labels_N: np.ndarray,
    class_names: Sequence[str],
    areas: Sequence[dict[str, float]],
) -> list[dict[str, Any]]:
    """Return one row per class, in the classes' order.

    Its keys are class, precision, recall, f1, support (its images), auc, average_precision. The last two are
    None where they are not defined.
    """
    columns = precision_recall_fscore_support(
        labels_N, predictions_N, labels=range(len(class_names)), zero_division=0
    )
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        | {key: None if np.isnan(value) else value for key, value in area.items()}
        for name, p, r, f, n, area in zip(class_names, *columns, areas, strict=True)
    ]


def _macro_auc(scores_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """Return the mean one-vs-rest AUC over the classes that occur; NaN if only one does."""
    auc_K = one_vs_rest_auc(scores_NK, labels_N)
    is_defined_K = ~np.isnan(auc_K)
    return float(auc_K[is_defined_K].mean()) if is_defined_K.any() else float("nan")


def one_vs_rest_auc(scores_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Return the AUC of each class against all others, from the ranks of its scores: float64 (K,).

    It is NaN for a class to which no image or every image belongs.

    The AUC is the Mann-Whitney U statistic divided by the number of pairs; equal scores get their mean rank.
    scikit-learn's `roc_auc_score` builds a curve for each class, which is slow after every epoch where there
    are a thousand classes.
    """
    auc_K = np.full(scores_NK.shape[1], np.nan)
    present, counts = np.unique(labels_N, return_counts=True)
    if len(present) < 2:
        return auc_K
    sorted_KN = np.sort(scores_NK.T, axis=1)
    for k, num_positive in zip(present, counts, strict=True):
        own = scores_NK[labels_N == k, k]
        below, not_above = (np.searchsorted(sorted_KN[k], own, side=side) for side in ("left", "right"))
        ranks = (below + not_above + 1) / 2
        wins = ranks.sum() - num_positive * (num_positive + 1) / 2
        auc_K[k] = wins / (num_positive * (len(labels_N) - num_positive))
    return auc_K


def _check(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> None:
    if probabilities_NK.ndim != 2 or labels_N.shape != probabilities_NK.shape[:1]:
        raise ValueError(f"expected (N, K) and (N,), got {probabilities_NK.shape} and {labels_N.shape}")
    if not len(labels_N):
        raise ValueError("no images to measure on")
    if labels_N.min() < 0 or labels_N.max() >= probabilities_NK.shape[1]:
        raise ValueError(f"labels must lie in [0, {probabilities_NK.shape[1]})")
    if not np.isfinite(probabilities_NK).all():
        raise ValueError("probabilities hold NaN or infinity")
