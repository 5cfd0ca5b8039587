"""The expected best of n trials: against all choices, one by one, hand-worked cases and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from harness.analysis.best_of import expected_best, median_best_interval


def test_a_case_worked_by_hand() -> None:
    # Of two of {1, 2, 4}: the highest is 2, 4 and 4.
    assert expected_best([4.0, 1.0, 2.0]).tolist() == pytest.approx([7 / 3, 10 / 3, 4.0])
    assert expected_best([0.5]).tolist() == [0.5]


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_it_is_the_mean_over_all_choices(count: int) -> None:
    scores = np.round(np.random.default_rng(count).normal(size=count), 1)  # with ties
    expected = [
        np.mean([max(choice) for choice in itertools.combinations(scores, n)]) for n in range(1, count + 1)
    ]
    assert expected_best(scores) == pytest.approx(expected)


def test_it_is_finite_and_rises_for_many_trials() -> None:
    curve = expected_best(np.random.default_rng(0).beta(8, 2, 3000))
    assert np.isfinite(curve).all()
    assert (np.diff(curve) >= -1e-9).all()


@pytest.mark.parametrize("scores", [[], [0.5, float("nan")]])
def test_a_score_that_is_none_is_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        expected_best(scores)


def test_it_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    found = np.mean([expected_best(rng.uniform(size=10))[[0, 4, 9]] for _ in range(4000)], axis=0)
    assert found == pytest.approx([1 / 2, 5 / 6, 10 / 11], abs=0.005)  # n / (n + 1)


@pytest.mark.parametrize(("count", "num_trials"), [(40, 1), (40, 4), (80, 8)])
def test_the_interval_holds_the_median(count: int, num_trials: int) -> None:
    rng = np.random.default_rng(1)
    truth = 0.5 ** (1 / num_trials)  # of uniform scores
    held = 0
    for _ in range(500):
        low, high = median_best_interval(rng.uniform(size=count), num_trials)
        assert low is not None
        held += low <= truth and (high is None or truth <= high)
    assert held / 500 >= 0.93


def test_too_few_trials_set_no_upper_limit() -> None:
    scores = list(np.linspace(0.1, 0.9, 9))
    low, high = median_best_interval(scores, 9)
    assert high is None
    assert low is not None
    assert median_best_interval([0.5], 1) == (None, None)
