"""The corrected interval of cross-validation against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harness.analysis.folds import estimate_folds
from harness.analysis.seeds import estimate

SCORES = [0.71, 0.74, 0.69, 0.75, 0.72]


def test_the_interval_is_that_of_nadeau_and_bengio() -> None:
    found = estimate_folds(SCORES)
    # The corrected resampled t: half a width for five repetitions with 20 % of the images held out.
    variance = np.var(SCORES, ddof=1) * (1 / 5 + 20 / 80)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(SCORES), scale=math.sqrt(variance))
    assert (found.mean, found.deviation) == (pytest.approx(0.722), pytest.approx(np.std(SCORES, ddof=1)))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_it_is_wider_than_that_of_independent_runs_and_stays_within_a_shares_bounds() -> None:
    plain, corrected = estimate(SCORES, is_share=True), estimate_folds(SCORES, is_share=True)
    assert plain.low is not None
    assert corrected.low is not None
    assert corrected.low < plain.low
    high = estimate_folds([0.999, 1.0, 0.98], is_share=True)
    assert high.high is not None
    assert high.high < 1
    assert estimate_folds([0.5, 0.5]).low is None
    with pytest.raises(ValueError, match="at least two"):
        estimate_folds([0.5])
