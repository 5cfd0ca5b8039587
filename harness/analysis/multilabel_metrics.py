"""Metrics of multi-label predictions, from logits and 0/1 labels; `metrics.py` is for one class per image.

`harness/training/module.py` computes `multilabel_metrics` after each epoch; `multilabel.py` adds thresholds
and the table of labels once, after training. Each label is a question of its own, answered by a sigmoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

HALF = 0.5  # the threshold of every label where none was chosen


def multilabel_metrics(logits_NK: np.ndarray, targets_NK: np.ndarray) -> dict[str, float]:
    """Return every metric of a split that needs no chosen threshold.

    - ``loss``: the binary cross entropy in nats, the mean over images and labels.
    - ``mAP``: the mean over the labels of the average precision; ``auc``: that of the ROC AUC.
    - ``precision``, ``recall``, ``f1`` (means over the labels), ``micro_f1`` and ``exact_match``: see
      `decision_metrics`, with a threshold of 0.5.

    Means over labels are over those with an image here, that of the AUC over those that also lack one; the
    value is NaN if there are none.

    Args:
        logits_NK: (N, K), finite.
        targets_NK: (N, K), 0 or 1.

    Raises:
        ValueError: shapes differ, there are no images, or a value is not 0 or 1.

    Source: `sklearn.metrics.average_precision_score`, `roc_auc_score`.
    """
    if logits_NK.shape != targets_NK.shape or logits_NK.ndim != 2 or not len(logits_NK):
        raise ValueError(f"expected (N, K) twice, N at least 1, got {logits_NK.shape} and {targets_NK.shape}")
    if not np.isin(targets_NK, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    logits = logits_NK.astype(np.float64)
    probabilities_NK = expit(logits)
    areas = label_areas(logits, targets_NK)
    return {
        "loss": float((np.logaddexp(0.0, logits) - logits * targets_NK).mean()),
        "mAP": _mean([area["average_precision"] for area in areas]),
        **decision_metrics(probabilities_NK > HALF, targets_NK),
        "auc": _mean([area["auc"] for area in areas]),
    }


def decision_metrics(decided_NK: np.ndarray, targets_NK: np.ndarray) -> dict[str, float]:
    """Return the metrics of yes/no answers.

    ``precision``, ``recall`` and ``f1`` are means over the labels that an image has (0/0 counts as 0);
    ``micro_f1`` is the F1 of all answers together; ``exact_match`` is the share of images whose labels are
    all right.

    Args:
        decided_NK: bool, (N, K).
        targets_NK: (N, K), 0 or 1.
    """
    precision_K, recall_K, f1_K = label_scores(decided_NK, targets_NK)
    has_images_K = targets_NK.any(axis=0)
    is_true_NK = targets_NK.astype(bool)
    hits = int((decided_NK & is_true_NK).sum())
    num_answers = int(decided_NK.sum()) + int(is_true_NK.sum())
    return {
        "precision": _mean(precision_K[has_images_K]),
        "recall": _mean(recall_K[has_images_K]),
        "f1": _mean(f1_K[has_images_K]),
        "micro_f1": 2 * hits / num_answers if num_answers else 0.0,
        "exact_match": float((decided_NK == is_true_NK).all(axis=1).mean()),
    }


def label_scores(decided_NK: np.ndarray, targets_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall and F1 of each label, float64 (K,) each; 0/0 counts as 0."""
    is_true_NK = targets_NK.astype(bool)
    hits_K = (decided_NK & is_true_NK).sum(axis=0)
    decided_K, true_K = decided_NK.sum(axis=0), is_true_NK.sum(axis=0)
    return (
        _ratio(hits_K, decided_K),
        _ratio(hits_K, true_K),
        _ratio(2 * hits_K, decided_K + true_K),
    )


def label_areas(scores_NK: np.ndarray, targets_NK: np.ndarray) -> list[dict[str, float]]:
    """Return the ROC AUC and the average precision of each label.

    Both are NaN for a label without images; the AUC is NaN for a label that all images have, too.

    Args:
        scores_NK: (N, K), logits or probabilities.
    """
    counts_K = targets_NK.astype(bool).sum(axis=0)
    return [
        {
            "auc": float(roc_auc_score(targets_NK[:, k], scores_NK[:, k]))
            if 0 < count < len(targets_NK)
            else float("nan"),
            "average_precision": float(average_precision_score(targets_NK[:, k], scores_NK[:, k]))
            if count
            else float("nan"),
        }
        for k, count in enumerate(counts_K)
    ]


def choose_thresholds(probabilities_NK: np.ndarray, targets_NK: np.ndarray) -> np.ndarray:
    """Return for each label the threshold above which yes has the highest F1 on these images, float64 (K,).

    It lies midway between the lowest probability that is answered yes and the next lower one; of equal F1,
    the highest is taken. A label without images here gets 0.5.

    Source: `sklearn.metrics.precision_recall_curve`.
    """
    thresholds_K = np.full(probabilities_NK.shape[1], HALF)
    for k in np.flatnonzero(targets_NK.any(axis=0)):
        precision, recall, scores = precision_recall_curve(targets_NK[:, k], probabilities_NK[:, k])
        total = precision + recall
        f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)[:-1]
        best = len(f1) - 1 - int(f1[::-1].argmax())  # scores rise
        below = probabilities_NK[probabilities_NK[:, k] < scores[best], k].max(initial=0.0)
        thresholds_K[k] = min((scores[best] + below) / 2, np.nextafter(scores[best], 0.0))
    return thresholds_K


def label_table(
    probabilities_NK: np.ndarray, targets_NK: np.ndarray, label_names: Sequence[str], thresholds_K: np.ndarray
) -> list[dict[str, Any]]:
    """Return one row per label, in the labels' order.

    Its keys are label, threshold, precision, recall, f1 (above that threshold), support (its images), auc,
    average_precision. The last two are None where they are not defined.
    """
    scores = label_scores(probabilities_NK > thresholds_K, targets_NK)
    areas = label_areas(probabilities_NK, targets_NK)
    support_K = targets_NK.astype(bool).sum(axis=0)
    columns = zip(label_names, thresholds_K, *scores, support_K, areas, strict=True)
    return [
        {"label": name, "threshold": float(t), "precision": float(p), "recall": float(r), "f1": float(f)}
        | {"support": int(n)}
        | {key: None if np.isnan(value) else value for key, value in area.items()}
        for name, t, p, r, f, n, area in columns
    ]


def _ratio(numerator_K: np.ndarray, denominator_K: np.ndarray) -> np.ndarray:
    out = np.zeros(len(numerator_K))
    return np.divide(numerator_K, denominator_K, out=out, where=denominator_K > 0)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean of the values that are defined; NaN if none is."""
    found = np.asarray(values, dtype=np.float64)
    found = found[~np.isnan(found)]
    return float(found.mean()) if len(found) else float("nan")
