"""What a classifier is worth, from its probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata


def classification_metrics(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Return accuracy and macro precision, recall, F1 and one-vs-rest AUC.

    The macro means run over the classes that the labels hold or the predictions name, as scikit-learn's do;
    a ratio 0/0 counts as 0. The AUC runs over the classes that the labels hold; it is NaN if that is one.

    Args:
        probabilities_NK: (N, K), any monotone score per class will do; ties go to the lower class.
        labels_N: (N,), integers in [0, K).

    Raises:
        ValueError: shapes differ, there are no images, a label is out of range or a score is not finite.

    Source: `sklearn.metrics.precision_recall_fscore_support`; `roc_auc_score`, which refuses absent classes.
    """
    _check(probabilities_NK, labels_N)
    counts_KK = confusion_matrix_counts(probabilities_NK.argmax(axis=1), labels_N, probabilities_NK.shape[1])
    precision_K, recall_K, f1_K = _rates(counts_KK)
    seen_K = (counts_KK.sum(axis=0) + counts_KK.sum(axis=1)) > 0
    return {
        "accuracy": float(counts_KK.trace() / counts_KK.sum()),
        "precision": float(precision_K[seen_K].mean()),
        "recall": float(recall_K[seen_K].mean()),
        "f1": float(f1_K[seen_K].mean()),
        "auc": _macro_auc(probabilities_NK, labels_N),
    }


def confusion_matrix_counts(predictions_N: np.ndarray, labels_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Return how often each true class (row) was taken for each class (column): int64, (K, K)."""
    cells_N = labels_N.astype(np.int64) * num_classes + predictions_N.astype(np.int64)
    return np.bincount(cells_N, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_table(
    predictions_N: np.ndarray, labels_N: np.ndarray, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row per class, in the classes' order: class, precision, recall, f1, support (its images)."""
    counts_KK = confusion_matrix_counts(predictions_N, labels_N, len(class_names))
    columns = zip(class_names, *_rates(counts_KK), counts_KK.sum(axis=1), strict=True)
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in columns
    ]


def _rates(counts_KK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall and F1 of each class."""
    hits_K = counts_KK.diagonal()
    predicted_K, actual_K = counts_KK.sum(axis=0), counts_KK.sum(axis=1)
    return _ratio(hits_K, predicted_K), _ratio(hits_K, actual_K), _ratio(2 * hits_K, predicted_K + actual_K)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return ratio


def _macro_auc(scores_NK: np.ndarray, labels_N: np.ndarray) -> float:
    present = np.unique(labels_N)
    if len(present) < 2:
        return float("nan")
    return float(np.mean([_auc(scores_NK[:, k], labels_N == k) for k in present]))


def _auc(scores_N: np.ndarray, is_positive_N: np.ndarray) -> float:
    """Return the chance that a random positive scores above a random negative, ties counting half.

    Source: Mann and Whitney (1947), as ranks; equals the area under the ROC curve.
    """
    num_positive = int(is_positive_N.sum())
    num_negative = len(scores_N) - num_positive
    rank_sum = rankdata(scores_N)[is_positive_N].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def _check(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> None:
    if probabilities_NK.ndim != 2 or labels_N.shape != probabilities_NK.shape[:1]:
        raise ValueError(f"expected (N, K) and (N,), got {probabilities_NK.shape} and {labels_N.shape}")
    if not len(labels_N):
        raise ValueError("no images to measure on")
    if labels_N.min() < 0 or labels_N.max() >= probabilities_NK.shape[1]:
        raise ValueError(f"labels must lie in [0, {probabilities_NK.shape[1]})")
    if not np.isfinite(probabilities_NK).all():
        raise ValueError("probabilities hold NaN or infinity")
