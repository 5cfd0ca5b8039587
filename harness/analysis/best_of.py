"""The best score that some number of trials is expected to find: searches of unequal size compared.

`sweeps.py` makes a `SweepCurve` of each sweep. They were proposed by Dodge et al., "Show your work" (2019).
Everything here takes trials for independent draws. That is what random search does; a sampler that learns
finds better scores late than early, which its curve, made of the same trials in any order, does not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from harness.analysis.seeds import LEVEL


def expected_best(scores: Sequence[float]) -> np.ndarray:
    """Return the highest score that is expected of 1, 2, … N trials, for N scores: float64 (N,).

    The estimate for n trials is the mean of the highest score over all choices of n of the N trials, which is
    unbiased (Tang et al., "Showing your work doesn't always work", 2020). Dodge et al. choose with
    replacement, which is too low on average, by most for n = N.

    Raises:
        ValueError: there are no scores, or one is not finite.
    """
    from scipy.special import gammaln

    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    count = len(ordered)
    if not count or not np.isfinite(ordered).all():
        raise ValueError("scores must be finite, and at least one")
    log_factorial = gammaln(np.arange(count + 1) + 1.0)
    found = np.empty(count)
    for size in range(1, count + 1):
        # The i-th of the ordered scores is the highest of a choice if the others are among the i - 1 below
        # it: C(i - 1, n - 1) of C(N, n) choices.
        below = np.arange(size - 1, count)
        logs = log_factorial[below] - log_factorial[size - 1] - log_factorial[below - size + 1]
        logs -= log_factorial[count] - log_factorial[size] - log_factorial[count - size]
        found[size - 1] = np.exp(logs) @ ordered[size - 1 :]
    return found


def median_best_interval(scores: Sequence[float], num_trials: int) -> tuple[float | None, float | None]:
    """Return the 95 % interval for the median of the highest score of some trials, of any distribution.

    The highest of n scores lies below x with the probability that one score does, to the power of n. So its
    median is the quantile 0.5^(1/n) of a single score, and two of the ordered scores are its interval, by the
    binomial distribution (the idea is that of Lourie et al., "Show your work with confidence", 2023).
    A bootstrap would hold the truth in 45 to 65 % of all cases where n is the number of scores
    (`python -m experiments.evidence`).

    Returns:
        The limits; None where these scores do not set one, as they are too few to say how rare a better is.
    """
    from scipy import stats

    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    quantile, tail = 0.5 ** (1 / num_trials), (1 - LEVEL) / 2
    low = int(stats.binom.ppf(tail, len(ordered), quantile))
    high = int(stats.binom.ppf(1 - tail, len(ordered), quantile)) + 1
    return (
        float(ordered[low - 1]) if low >= 1 else None,
        float(ordered[high - 1]) if high <= len(ordered) else None,
    )


@dataclass(frozen=True)
class SweepCurve:
    """What a sweep tried, and what some of its trials would have been expected to find."""

    name: str
    minimizes: bool
    outcomes: dict[str, int]  # how many trials ended how
    scores: tuple[float, ...]  # of every try; the worst one for those without
    minutes: float  # of training, all tries together
    is_running: bool

    @property
    def best(self) -> float:
        return min(self.scores) if self.minimizes else max(self.scores)

    @property
    def minutes_per_trial(self) -> float:
        return self.minutes / len(self.scores)

    @cached_property
    def expected(self) -> np.ndarray:
        """The best score expected of 1, 2, … trials."""
        return self._sign * expected_best(self._signed)

    def interval(self, num_trials: int) -> tuple[float | None, float | None]:
        """Return the 95 % interval for the median of the best of some trials; None: no limit."""
        limits = median_best_interval(self._signed, num_trials)
        low, high = (None if limit is None else self._sign * limit for limit in limits)
        return (high, low) if self.minimizes else (low, high)

    def trials_in(self, minutes: float) -> int:
        """Return how many trials of average length fit into some minutes of training; at least one."""
        fitting = int(minutes / self.minutes_per_trial + 1e-9) if self.minutes > 0 else len(self.scores)
        return max(1, min(fitting, len(self.scores)))

    @property
    def _sign(self) -> int:
        return -1 if self.minimizes else 1

    @property
    def _signed(self) -> list[float]:
        return [self._sign * score for score in self.scores]
