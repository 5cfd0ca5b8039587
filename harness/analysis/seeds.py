"""What several seeds of a configuration show: an interval for its score, and tests between configurations.

`compare.py` groups recorded runs by configuration and calls these functions, which take plain numbers. A seed
decides everything that a run draws: initialisation, order of the data, augmentation. The intervals are
Student's t over seeds. A percentile bootstrap over 3 to 10 values would hold the true mean in 75 to 90 % of
all cases where 95 % are promised (`python -m experiments.evidence` prints both).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

LEVEL = 0.95  # of every interval; 1 - LEVEL is the error rate of every test
POWER = 0.8  # with which `seeds_needed` is to find a difference
MOST_SEEDS = 10_000  # beyond which `seeds_needed` counts no further

Scores = Mapping[int, float]  # by seed


@dataclass(frozen=True)
class Estimate:
    """The mean score of a configuration over its seeds."""

    n: int
    mean: float
    deviation: float | None  # of the scores, with n - 1; None for a single run
    low: float | None  # of the interval for the mean; None where there is none, see `estimate`
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None or self.deviation is None:
            why = "one run" if self.n == 1 else f"{self.n} equal runs"
            return f"{self.mean:.4f} ({why}: no interval)"
        interval = _range(self.low, self.high)
        return f"{self.mean:.4f} ± {self.deviation:.4f} (n = {self.n}, 95 % interval {interval})"


@dataclass(frozen=True)
class Difference:
    """How much better one configuration's mean score is than another's; positive: the first is better."""

    first: str
    second: str
    mean: float
    low: float | None  # of the interval; None where no interval is possible
    high: float | None
    p_value: float | None  # two-sided, not corrected
    corrected: float | None  # by Holm's method, over all pairs that were compared
    better: float  # the share of pairs of runs in which the first's is better; ties count half
    shared: int  # seeds on which the test is paired; 0: it is Welch's, over unpaired runs
    deviation: float | None  # of the paired differences, or of a run (pooled) where they are not paired

    @property
    def is_found(self) -> bool:
        """Whether the difference is more than seeds explain, after the correction."""
        return self.corrected is not None and self.corrected < 1 - LEVEL


def estimate(scores: Sequence[float]) -> Estimate:
    """Return the mean of some runs' scores, with Student's interval.

    There is no interval for a single run, and none for runs that are equal to the last digit: their deviation
    of zero says that seeds did not reach the score, not that the mean is known exactly.

    Raises:
        ValueError: there are no scores, or one is not finite.
    """
    values = _finite(scores)
    if len(values) < 2 or np.ptp(values) == 0:
        deviation = None if len(values) < 2 else 0.0
        return Estimate(len(values), float(values.mean()), deviation, None, None)
    low, high = _student(values)
    return Estimate(len(values), float(values.mean()), float(values.std(ddof=1)), low, high)


def compare_groups(groups: Mapping[str, Scores], *, minimizes: bool = False) -> list[Difference]:
    """Compare every two configurations that have at least two runs each; the better is named first.

    Two configurations that share at least two seeds are compared on these, by a paired t test: what a seed
    makes easier for both cancels out. Others are compared by Welch's test. The p values are corrected by
    Holm's method (1979) over all the pairs.

    Args:
        groups: the scores of each configuration, by seed.
        minimizes: whether a lower score is better.
    """
    pairs = [
        _compare(first, second, groups[first], groups[second], -1.0 if minimizes else 1.0)
        for first, second in itertools.combinations(groups, 2)
        if min(len(groups[first]), len(groups[second])) > 1
    ]
    # A pair without a p value was not tested: it counts for no correction.
    tested = [pair.p_value for pair in pairs if pair.p_value is not None]
    if not tested:
        return pairs
    from statsmodels.stats.multitest import multipletests  # a second to import

    corrected = iter(multipletests(tested, method="holm")[1].tolist())
    return [pair if pair.p_value is None else replace(pair, corrected=next(corrected)) for pair in pairs]


def seeds_needed(deviation: float, difference: float, *, is_paired: bool) -> int | None:
    """Return how many seeds of each configuration would show a difference with a power of 80 %.

    Args:
        deviation: of the paired differences, or of a run where they are not paired.
        difference: of the means that is to be found.

    Returns:
        At least 2; None where more than `MOST_SEEDS` would be needed.
    """
    from statsmodels.stats.power import TTestIndPower, TTestPower

    # The solver fails beyond an effect of about 5, where two or three seeds are enough.
    effect = min(abs(difference) / deviation, 4.0) if deviation > 0 else 4.0
    if effect < 1e-3:
        return None
    solver = TTestPower() if is_paired else TTestIndPower()
    key = "nobs" if is_paired else "nobs1"
    found = solver.solve_power(effect_size=effect, alpha=1 - LEVEL, power=POWER, **{key: None})
    needed = max(2, math.ceil(float(np.squeeze(found))))
    return needed if needed <= MOST_SEEDS else None


def describe(pair: Difference, metric: str, worthwhile: float | None = None) -> str:
    """Return a comparison as one sentence.

    Args:
        worthwhile: the smallest difference that would matter. The sentence says how many seeds would find it,
            or the difference that was seen, if that is larger.
    """
    by = f"{abs(pair.mean):.4f} {metric}"
    how = f"{pair.shared} shared seeds" if pair.shared else "unpaired runs"
    if pair.low is None or pair.high is None or pair.p_value is None:
        return f"{pair.first} and {pair.second} differ by {by} in every one of {how}: no test is possible"
    shown = f"{by} (95 % interval {_range(pair.low, pair.high)}; {how}; p = {_p(pair.p_value)}"
    corrected = "" if pair.corrected == pair.p_value else f", {_p(pair.corrected)} after Holm's correction"
    if pair.is_found:
        return (
            f"{pair.first} is better than {pair.second} by {shown}{corrected}); its run is the better one in "
            f"{pair.better:.0%} of all pairs of runs"
        )
    wanted = max(worthwhile or 0.0, abs(pair.mean))
    needed = seeds_needed(pair.deviation or 0.0, wanted, is_paired=pair.shared > 0)
    enough = f"more than {MOST_SEEDS:,}" if needed is None else f"about {needed}"
    return (
        f"these runs do not tell {pair.first} from {pair.second}: it leads by {shown}{corrected}); {enough} "
        f"seeds of each would find a difference of {wanted:.4f} in 80 % of all cases"
    )


def _compare(first: str, second: str, a: Scores, b: Scores, sign: float) -> Difference:
    from scipy import stats

    x, y = sign * _finite(list(a.values())), sign * _finite(list(b.values()))
    if y.mean() > x.mean():
        first, second, a, b, x, y = second, first, b, a, y, x
    seeds = sorted(a.keys() & b.keys())
    is_paired = len(seeds) > 1
    low = high = p_value = deviation = None
    if is_paired:
        differences = sign * np.array([a[seed] - b[seed] for seed in seeds])
        mean = float(differences.mean())
        deviation = float(differences.std(ddof=1))
        if np.ptp(differences) > 0:
            low, high = _student(differences)
            p_value = float(stats.ttest_1samp(differences, 0.0).pvalue)
    else:
        mean = float(x.mean() - y.mean())
        deviation = float(np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2))
        if deviation > 0:
            test = stats.ttest_ind(x, y, equal_var=False)
            low, high = map(float, test.confidence_interval(LEVEL))
            p_value = float(test.pvalue)
    wins = np.sign(x[:, None] - y[None, :])  # of every run of the one over every run of the other
    return Difference(
        first=first,
        second=second,
        mean=mean,
        low=low,
        high=high,
        p_value=p_value,
        corrected=None,
        better=float((1 + wins.mean()) / 2),
        shared=len(seeds) if is_paired else 0,
        deviation=deviation,
    )


def _student(values: np.ndarray) -> tuple[float, float]:
    from scipy import stats

    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(LEVEL)
    return float(low), float(high)


def _finite(scores: Sequence[float]) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("scores must be finite, and at least one")
    return values


def _range(low: float, high: float) -> str:
    return f"{low:.4f} to {high:.4f}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"
