"""The mean score of cross-validation over its folds, with an interval that allows for what they share.

`harness.training.commands.cross_validate` calls `estimate_folds`. The models of two folds have most of
their training images in common, so their scores are not independent, and the usual interval of a mean
would be too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from harness.analysis.seeds import LEVEL, Estimate

EXPLAINED = (
    "the folds share training images, so their scores are not independent: the interval widens the variance "
    "of the mean from s²/k to s²·(1/k + 1/(k-1)) (Nadeau and Bengio, 2003), which corrects for that roughly; "
    "no unbiased estimate exists (Bengio and Grandvalet, 2004)"
)


def estimate_folds(scores: Sequence[float], *, is_share: bool = False) -> Estimate:
    """Return the mean of the folds' scores, their deviation, and the corrected interval of Student's t.

    The variance of the mean is taken to be s² · (1/k + n_test/n_train), where k-fold cross-validation has
    n_test/n_train = 1/(k - 1). There is no interval for equal scores.

    Args:
        is_share: whether a score is bounded by 0 and 1. The interval is then symmetric on the scale of the
            logit, as in `harness.analysis.seeds.estimate`.

    Raises:
        ValueError: there are fewer than two scores, or one is not finite.

    Source: Nadeau & Bengio, "Inference for the generalization error", Machine Learning 52 (2003), section 3;
        for cross-validation, Bouckaert & Frank (2004).
    """
    from scipy import stats
    from scipy.special import expit, logit

    values = np.asarray(scores, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError("scores must be finite, and at least two")
    k, mean, deviation = len(values), float(values.mean()), float(values.std(ddof=1))
    if np.ptp(values) == 0:
        return Estimate(k, mean, 0.0, None, None)
    half = float(stats.t.ppf((1 + LEVEL) / 2, k - 1)) * deviation * math.sqrt(1 / k + 1 / (k - 1))
    if is_share and values.min() >= 0 and values.max() <= 1:
        slope = mean * (1 - mean)
        return Estimate(
            k,
            mean,
            deviation,
            float(expit(logit(mean) - half / slope)),
            float(expit(logit(mean) + half / slope)),
        )
    return Estimate(k, mean, deviation, mean - half, mean + half)
