"""Calibration: whether a model that is 80 % sure is right 80 % of the time, and what temperature mends it.

`evaluation.py` calls these functions after training; `curves.py` draws the bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import brier_score_loss

NUM_BINS = 15  # of equal width, as in Guo et al. (2017), On Calibration of Modern Neural Networks
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class ReliabilityBins:
    """Images by the probability of their predicted class (the confidence), in `NUM_BINS` equal steps.

    Args:
        counts: int64 (bins,).
        confidence: their mean confidence, float64 (bins,); NaN in an empty bin.
        accuracy: the share that is right, likewise.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration_metrics(log_probabilities_NK: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Return ``loss``, ``brier`` and ``ece``.

    - ``loss``: the mean negative log-likelihood, in nats.
    - ``brier``: the mean squared error of the probabilities, as scikit-learn defines it: summed over the
      classes, within [0, 2], and for two classes that of one class, within [0, 1].
    - ``ece``: the expected calibration error of the predicted class over `NUM_BINS` bins, as torchmetrics
      defines it (`multiclass_calibration_error`, l1).
    """
    probabilities_NK = np.exp(log_probabilities_NK)
    num_classes = log_probabilities_NK.shape[1]
    scores = probabilities_NK[:, 1] if num_classes == 2 else probabilities_NK
    return {
        "loss": _mean_loss(log_probabilities_NK, labels_N),
        "brier": float(brier_score_loss(labels_N, scores, labels=range(num_classes))),
        "ece": calibration_error(probabilities_NK, labels_N),
    }


def calibration_error(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """Return the expected calibration error of the predicted class, within [0, 1]."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    # torchmetrics puts a confidence of exactly 1, which float32 makes of 1 - 1e-9, into a sixteenth bin. The
    # next lower number is in the last of the 15.
    below_one = np.nextafter(np.float32(1), np.float32(0))
    scores = torch.from_numpy(probabilities_NK.astype(np.float32).clip(0, below_one))
    labels = torch.from_numpy(labels_N.astype(np.int64))
    error = multiclass_calibration_error(scores, labels, probabilities_NK.shape[1], NUM_BINS, norm="l1")
    return float(error)


def fit_temperature(logits_NK: np.ndarray, labels_N: np.ndarray) -> float | None:
    """Return the T > 0 by which logits are divided so that their loss on these images is lowest.

    Returns:
        None if the loss is lowest at an end of [0.05, 20]: where every image is right, for example, it falls
        with T without end.

    Source: Guo et al. (2017), On Calibration of Modern Neural Networks.
    """
    logits = logits_NK.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return _mean_loss(log_softmax(logits / math.exp(log_temperature), axis=1), labels_N)

    # The loss is convex in 1/T, so it has one minimum.
    ends = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-5})
    is_inside = min(found.x - ends[0], ends[1] - found.x) > 1e-3
    # Constant logits have the same loss at every T.
    return math.exp(found.x) if is_inside and found.fun < min(map(loss, ends)) - 1e-12 else None


def reliability_bins(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> ReliabilityBins:
    """Return the bins of a reliability diagram, those over which `calibration_error` sums."""
    return _bins(probabilities_NK.max(axis=1), probabilities_NK.argmax(axis=1) == labels_N)


def answer_bins(probabilities_NK: np.ndarray, labels_NK: np.ndarray) -> ReliabilityBins:
    """Return the bins of all multi-label answers: by the probability of yes, with the share that is yes."""
    return _bins(probabilities_NK.ravel(), labels_NK.ravel() == 1)


def _bins(confidence_N: np.ndarray, is_right_N: np.ndarray) -> ReliabilityBins:
    bin_N = np.minimum((confidence_N * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bin_N, minlength=NUM_BINS)

    def mean_in_bins(values_N: np.ndarray) -> np.ndarray:
        sums = np.bincount(bin_N, weights=values_N, minlength=NUM_BINS)
        return np.divide(sums, counts, out=np.full(NUM_BINS, np.nan), where=counts > 0)

    return ReliabilityBins(counts, mean_in_bins(confidence_N), mean_in_bins(is_right_N))


def _mean_loss(log_probabilities_NK: np.ndarray, labels_N: np.ndarray) -> float:
    return float(-log_probabilities_NK[np.arange(len(labels_N)), labels_N].mean())
