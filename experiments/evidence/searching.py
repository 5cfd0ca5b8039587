"""Simulated searches and pairs of models: whether `harness compare --sweeps` and McNemar's test are right.

`python -m experiments.evidence` calls `report`.
"""

from __future__ import annotations

import numpy as np

from harness.analysis.best_of import expected_best, median_best_interval

NUM_RESAMPLES = 300
IMAGES, ACCURACY = 1000, 0.9


def best_of(
    count: int, size: int, repeats: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Simulate searches of `count` trials with uniform scores, and ask for the best of `size` of them.

    Returns:
        The mean error of the expected best, and of the estimate with replacement (Dodge et al., 2019); how
        often the interval holds the median, and how often a percentile bootstrap of the expected best would.
    """
    truth, median = size / (size + 1), 0.5 ** (1 / size)
    with_replacement = np.diff((np.arange(count + 1) / count) ** size)
    errors = np.zeros(2)
    held = bootstrapped = 0
    for _ in range(repeats):
        scores = rng.uniform(size=count)
        errors += expected_best(list(scores))[size - 1] - truth, np.sort(scores) @ with_replacement - truth
        low, high = median_best_interval(list(scores), size)
        held += (low is None or low <= median) and (high is None or median <= high)
        samples = np.sort(scores[rng.integers(0, count, (NUM_RESAMPLES, count))], axis=1) @ with_replacement
        bounds = np.percentile(samples, [2.5, 97.5])
        bootstrapped += bounds[0] <= truth <= bounds[1]
    return errors[0] / repeats, errors[1] / repeats, held / repeats, bootstrapped / repeats


def equal_models_called_different(repeats: int, rng: np.random.Generator) -> float:
    """Return how often the exact McNemar test calls two equally good models different."""
    from statsmodels.stats.contingency_tables import mcnemar

    found = 0
    for _ in range(repeats):
        one, other = rng.random((2, IMAGES)) < ACCURACY
        alone, reverse = int((one & ~other).sum()), int((other & ~one).sum())
        found += mcnemar([[0, alone], [reverse, 0]], exact=True).pvalue < 0.05
    return found / repeats


def report(repeats: int, rng: np.random.Generator) -> None:
    """Print both."""
    head = "bias   bias with replacement   interval of the median holds it   a bootstrap of the mean would"
    print(f"\nexpected best of n of N trials      N    n   {head}")
    for count, size in ((8, 4), (8, 8), (20, 5), (20, 20), (40, 5), (40, 10), (40, 40)):
        bias, replaced, held, bootstrapped = best_of(count, size, min(repeats, 1000), rng)
        print(
            f"{'':<32} {count:>4} {size:>4} {bias:>6.3f} {replaced:>23.3f} "
            f"{held:>32.1%} {bootstrapped:>31.1%}"
        )
    wrong = equal_models_called_different(repeats, rng)
    print(
        f"\ntwo models, each right on {ACCURACY:.0%} of {IMAGES:,} images, called different by "
        f"McNemar's test: {wrong:.1%}"
    )
