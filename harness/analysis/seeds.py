"""What several seeds of a configuration show: an interval for its score, and tests between configurations.

`compare.py` groups recorded runs by configuration and calls these functions, which take plain numbers. A seed
decides everything that a run draws: initialisation, order of the data, augmentation. The intervals are
Student's t over seeds; for scores within [0, 1] they are taken on the scale of the logit. A percentile
bootstrap over 3 to 10 values would hold the true mean in 75 to 90 % of all cases where 95 % are promised
(`python -m experiments.evidence` prints all of them).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

LEVEL = 0.95  # of every interval; 1 - LEVEL is the error rate of every test
POWER = 0.8  # with which `seeds_needed` is to find a difference
HALF_A_POINT = 0.005  # the smallest difference that matters, of a metric within [0, 1]
MOST_SEEDS = 10_000  # beyond which `seeds_needed` counts no further
# From Bouthillier et al., "Accounting for variance in machine learning benchmarks" (2021): from which
# probability that A beats B an advantage is meaningful, and the number of runs recommended (Noether's size).
MEANINGFUL, RECOMMENDED_SEEDS = 0.75, 29
FEWEST_SEEDS = 6  # that can show more than even odds: the exact interval of 5 wins in 5 begins at 0.48

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
    # Probability that a run of the first beats one of the second: the share of the shared seeds, or of all
    # pairs of runs where they are not paired; ties count half. The interval over shared seeds is exact
    # (Clopper and Pearson's): a percentile bootstrap would call two wins in two certain.
    better: float
    better_low: float | None
    better_high: float | None
    shared: int  # seeds on which the test is paired; 0: it is Welch's, over unpaired runs
    deviation: float | None  # of the paired differences, or of a run (pooled) where they are not paired

    @property
    def is_found(self) -> bool:
        """Whether the difference is more than seeds explain, after the correction."""
        return self.corrected is not None and self.corrected < 1 - LEVEL


def is_within_one(metric: str, *, minimizes: bool) -> bool:
    """Return whether a metric lies within [0, 1], by its name: one to maximize, other than a loss."""
    return not minimizes and not metric.endswith("loss")


def estimate(scores: Sequence[float], *, is_share: bool = False) -> Estimate:
    """Return the mean of some runs' scores, with an interval of Student's t.

    There is no interval for a single run, and none for runs that are equal to the last digit: their deviation
    of zero says that seeds did not reach the score, not that the mean is known exactly.

    Args:
        is_share: whether a score is bounded by 0 and 1, like an accuracy. The interval is then symmetric on
            the scale of the logit, by the delta method, as in `svyciprop` of R's package `survey`. It stays
            within the bounds, and covers better near one, where scores are skewed: they lean away from it.

    Raises:
        ValueError: there are no scores, or one is not finite.
    """
    values = _finite(scores)
    if len(values) < 2 or np.ptp(values) == 0:
        deviation = None if len(values) < 2 else 0.0
        return Estimate(len(values), float(values.mean()), deviation, None, None)
    low, high = _share_interval(values) if is_share else _student(values)
    return Estimate(len(values), float(values.mean()), float(values.std(ddof=1)), low, high)


def noise_of(estimates: Sequence[Estimate]) -> tuple[float | None, int]:
    """Return a run's standard deviation over seeds, pooled over configurations, and its degrees of freedom.

    None and 0 where no configuration has two runs, or where all runs of each are equal.
    """
    several = [(of.n - 1, of.deviation) for of in estimates if of.deviation is not None]
    degrees = sum(free for free, _ in several)
    squares = sum(free * deviation**2 for free, deviation in several)
    return (math.sqrt(squares / degrees), degrees) if squares > 0 else (None, 0)


def winner(
    scores: Mapping[int, float], fresh: Mapping[int, Sequence[float]], *, minimizes: bool = False
) -> int | None:
    """Return the number of a sweep's best trial, of equals the lowest; None if no trial has a score.

    That is the trial with the best score, until it has two replicates or more. From then on it is the one
    with the best mean over fresh seeds among those that have replicates, because the best of many single
    scores is in part the luckiest.

    Args:
        scores: of the trials that the search proposed, by number; of complete ones only.
        fresh: the scores of each trial's replicates, by the trial's number.
    """
    sign = 1.0 if minimizes else -1.0
    best = min(scores, key=lambda number: (sign * scores[number], number), default=None)
    means = {number: float(np.mean(fresh[number])) for number in scores if len(fresh.get(number, ())) > 1}
    if best not in means:
        return best
    return min(means, key=lambda number: (sign * means[number], number))


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
    corrected = iter(holm(tested))
    return [pair if pair.p_value is None else replace(pair, corrected=next(corrected)) for pair in pairs]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected by Holm's method (1979) for their number.

    The k-th smallest of n is multiplied by n + 1 - k, and none becomes smaller than the one before it.
    statsmodels' `multipletests` does the same, but takes a second to import and collects the whole process's
    garbage at each call, half a second once torch is loaded.
    """
    order = np.argsort(p_values, kind="stable")
    multiplied = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(multiplied), 1.0)
    return [float(value) for value in corrected]


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
    tested = p_texts(pair.p_value, pair.corrected)
    shown = f"{by} (95 % interval {_range(pair.low, pair.high)}; {how}; {tested})"
    if pair.is_found:
        return f"{pair.first} is better than {pair.second} by {shown}; {_odds(pair)}"
    wanted = max(worthwhile or 0.0, abs(pair.mean))
    needed = seeds_needed(pair.deviation or 0.0, wanted, is_paired=pair.shared > 0)
    enough = f"more than {MOST_SEEDS:,}" if needed is None else f"about {needed}"
    return (
        f"these runs show no difference between {pair.first} and {pair.second}: {pair.first} leads by "
        f"{shown}; {enough} seeds of each would find a difference of {wanted:.4f} in 80 % of "
        f"all cases; {_odds(pair)}"
    )


def explain_odds(pairs: Sequence[Difference]) -> str | None:
    """Return a line on how to read the probabilities that A beats B, or None where there are none."""
    if not pairs:
        return None
    fewest = min((pair.shared for pair in pairs if pair.shared), default=0)
    limit = (
        f"; {fewest} shared seeds cannot exclude even odds, whatever they show: it takes {FEWEST_SEEDS}"
        if 0 < fewest < FEWEST_SEEDS
        else ""
    )
    return (
        "P(A > B): the probability that a run of A beats one of B; an interval above 50 % shows an "
        f"advantage, one that also reaches {MEANINGFUL:.0%} a meaningful one (Bouthillier et al., 2021, who "
        f"recommend {RECOMMENDED_SEEDS} seeds){limit}"
    )


def _odds(pair: Difference) -> str:
    if pair.better_low is None or pair.better_high is None:
        return f"P(A > B) = {pair.better:.0%} of all pairs of runs, no interval without shared seeds"
    return (
        f"P(A > B) = {pair.better:.0%} of {pair.shared} shared seeds, 95 % interval {pair.better_low:.0%} to "
        f"{pair.better_high:.0%}"
    )


def _compare(first: str, second: str, a: Scores, b: Scores, sign: float) -> Difference:
    from scipy import stats

    x, y = sign * _finite(list(a.values())), sign * _finite(list(b.values()))
    if y.mean() > x.mean():
        first, second, a, b, x, y = second, first, b, a, y, x
    seeds = sorted(a.keys() & b.keys())
    is_paired = len(seeds) > 1
    low = high = p_value = deviation = better_low = better_high = None
    if is_paired:
        differences = sign * np.array([a[seed] - b[seed] for seed in seeds])
        mean = float(differences.mean())
        deviation = float(differences.std(ddof=1))
        better = float((1 + np.sign(differences).mean()) / 2)
        better_low, better_high = _binomial_interval(better * len(seeds), len(seeds))
        if np.ptp(differences) > 0:
            low, high = _student(differences)
            p_value = float(stats.ttest_1samp(differences, 0.0).pvalue)
    else:
        mean = float(x.mean() - y.mean())
        deviation = float(np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2))
        better = float((1 + np.sign(x[:, None] - y[None, :]).mean()) / 2)
        if deviation > 0:
            test = stats.ttest_ind(x, y, equal_var=False)
            low, high = map(float, test.confidence_interval(LEVEL))
            p_value = float(test.pvalue)
    return Difference(
        first=first,
        second=second,
        mean=mean,
        low=low,
        high=high,
        p_value=p_value,
        corrected=None,
        better=better,
        better_low=better_low,
        better_high=better_high,
        shared=len(seeds) if is_paired else 0,
        deviation=deviation,
    )


def _student(values: np.ndarray) -> tuple[float, float]:
    from scipy import stats

    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(LEVEL)
    return float(low), float(high)


def _share_interval(values: np.ndarray) -> tuple[float, float]:
    """Return Student's interval on the scale of the logit; on the scores' own where one is no share."""
    from scipy.special import expit, logit

    mean = float(values.mean())
    low, high = _student(values)
    if values.min() < 0 or values.max() > 1:
        return low, high
    half = (high - low) / 2 / (mean * (1 - mean))  # the logit's slope at the mean
    return float(expit(logit(mean) - half)), float(expit(logit(mean) + half))


def _binomial_interval(wins: float, count: int) -> tuple[float, float]:
    """Return Clopper and Pearson's exact interval for a probability; half a win is a tie."""
    from scipy import stats

    tail = (1 - LEVEL) / 2
    low = 0.0 if wins <= 0 else float(stats.beta.ppf(tail, wins, count - wins + 1))
    high = 1.0 if wins >= count else float(stats.beta.ppf(1 - tail, wins + 1, count - wins))
    return low, high


def _finite(scores: Sequence[float]) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("scores must be finite, and at least one")
    return values


def _range(low: float, high: float) -> str:
    return f"{low:.4f} to {high:.4f}"


def p_text(value: float | None) -> str:
    """Return a p value as sentences show it."""
    return "–" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def p_texts(value: float, corrected: float | None) -> str:
    """Return ``p = 0.012, 0.036 after Holm's correction``; the correction only where it changed something."""
    plain = p_text(value) if value < 0.001 else f"= {p_text(value)}"
    return f"p {plain}" + ("" if corrected == value else f", {p_text(corrected)} after Holm's correction")
