"""The best of many scores is corrected for its choice."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from harness.analysis.optimism import estimate_optimism, wilson


def equal_trials(count: int, num_images: int, seed: int = 0) -> dict[int, np.ndarray]:
    """Trials that are all right with a probability of 80 %, independently."""
    return dict(enumerate(np.random.default_rng(seed).random((count, num_images)) < 0.8))


def test_the_best_of_equal_trials_is_corrected_towards_what_they_are() -> None:
    errors = []
    for seed in range(20):
        found = estimate_optimism(equal_trials(20, 500, seed))
        assert found is not None
        assert found.low < found.corrected < found.reported
        errors.append((found.reported - 0.8, found.corrected - 0.8))
    optimism, left = np.mean(errors, axis=0)

    assert optimism > 0.02  # the expected maximum of 20 is 1.87 deviations of 0.0179 above
    assert abs(left) < 0.01


def test_a_trial_that_is_far_ahead_is_not_corrected() -> None:
    rng = np.random.default_rng(0)
    found = estimate_optimism({0: rng.random(1000) < 0.9, 1: rng.random(1000) < 0.5})

    assert found is not None
    assert found.corrected == pytest.approx(found.reported, abs=0.003)
    low, high = proportion_confint(found.corrected * 1000, 1000, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


def test_one_trial_was_not_chosen() -> None:
    assert estimate_optimism(equal_trials(1, 100)) is None


def test_trials_that_are_all_right_have_an_interval_below_one() -> None:
    found = estimate_optimism({number: np.ones(100, dtype=bool) for number in range(3)})

    assert found is not None
    assert (found.reported, found.corrected) == (1.0, 1.0)
    assert found.low == pytest.approx(wilson(1.0, 100)[0])
    assert found.low < 0.97
