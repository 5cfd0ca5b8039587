"""Simulates comparisons over seeds, and prints how often intervals and tests of `harness compare` are right.

    python -m experiments.evidence [--repeats 2000]
    python -m experiments.evidence --real       (trains 100 small networks, in minutes)

Scores are drawn from distributions whose mean is known, so that every claim can be checked. The functions of
`harness compare` judge them (`harness/analysis/seeds.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from statsmodels.stats.power import TTestPower

from experiments.evidence import searching
from harness.analysis.seeds import Estimate, compare_groups, estimate, seeds_needed

SIZES = (3, 5, 10)  # seeds
Draw = Callable[[np.random.Generator, int], np.ndarray]

# Each with its true mean. Accuracies are bounded, and near the bound their distribution leans away from it.
DISTRIBUTIONS: Mapping[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(0.9, 0.01, n), 0.9),
    "bounded (beta 90, 10)": (lambda rng, n: rng.beta(90, 10, n), 0.9),
    "skewed (beta 20, 1)": (lambda rng, n: rng.beta(20, 1, n), 20 / 21),
    "skewed (beta 5, 1)": (lambda rng, n: rng.beta(5, 1, n), 5 / 6),
    "images (binomial of 500, 0.98)": (lambda rng, n: rng.binomial(500, 0.98, n) / 500, 0.98),
    "skewed, no bound near (exponential)": (lambda rng, n: 0.91 - rng.exponential(0.01, n), 0.9),
}


def coverage(
    draw: Draw, mean: float, size: int, repeats: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Return how often three intervals hold the true mean.

    Returns:
        The interval for shares, Student's, and a percentile bootstrap's. Samples of equal scores get no
        interval and are not counted.
    """
    held = np.zeros(3)
    counted = 0
    while counted < repeats:
        scores = draw(rng, size)
        if np.ptp(scores) == 0:
            continue
        counted += 1
        share, student = estimate(list(scores), is_share=True), estimate(list(scores))
        means = scores[rng.integers(0, size, (400, size))].mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        held += [_holds(share, mean), _holds(student, mean), low <= mean <= high]
    first, second, third = held / repeats
    return first, second, third


def _holds(found: Estimate, mean: float) -> bool:
    return found.low is not None and found.high is not None and found.low <= mean <= found.high


def called_different(
    means: Sequence[float], size: int, repeats: int, rng: np.random.Generator, *, same_seeds: bool = True
) -> float:
    """Return how often any two configurations are called different.

    Args:
        means: of each configuration, in deviations of a run.
        size: how many seeds each has.
    """
    found = 0
    for _ in range(repeats):
        groups = {
            str(number): dict(enumerate(rng.normal(mean, 1.0, size), 0 if same_seeds else number * size))
            for number, mean in enumerate(means)
        }
        found += any(pair.is_found for pair in compare_groups(groups))
    return found / repeats


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=2000, help="simulations of each row")
    parser.add_argument("--real", action="store_true", help="train ten real pairs on digits instead")
    options = parser.parse_args()
    if options.real:
        from experiments.evidence.real import main as train_pairs

        train_pairs()
        return
    repeats = options.repeats
    rng = np.random.default_rng(0)
    error = 1.96 * 100 * np.sqrt(0.05 * 0.95 / repeats)
    print(f"{repeats:,} simulations a row: a rate of 95 % is known to ± {error:.1f} points\n")

    print(
        "coverage of the 95 % interval       seeds   t on the logit (ours)   Student's t   "
        "percentile bootstrap"
    )
    for name, (draw, mean) in DISTRIBUTIONS.items():
        for size in SIZES:
            share, student, bootstrap = coverage(draw, mean, size, repeats, rng)
            print(f"{name:<35} {size:>5} {share:>23.1%} {student:>13.1%} {bootstrap:>22.1%}", flush=True)

    print("\nthe same configuration twice, called different     seeds   shared seeds   unpaired")
    for size in (2, *SIZES):
        paired = called_different((0, 0), size, repeats, rng)
        unpaired = called_different((0, 0), size, repeats, rng, same_seeds=False)
        print(f"{'':<50} {size:>5} {paired:>13.1%} {unpaired:>10.1%}", flush=True)

    print("\npower: means 2 deviations of a run apart     seeds   simulated   theory of the paired t test")
    for size in SIZES:
        theory = TTestPower().power(2 / np.sqrt(2), size, 0.05)
        print(f"{'':<44} {size:>5} {called_different((2, 0), size, repeats, rng):>11.1%} {theory:>13.1%}")

    print("\nseeds said to be needed (power of 80 %)     apart   seeds   simulated power with so many")
    for apart in (1.0, 2.0, 3.0):
        needed = seeds_needed(np.sqrt(2), apart, is_paired=True)
        assert needed is not None
        power = called_different((apart, 0), needed, repeats, rng)
        print(f"{'':<43} {apart:>4.1f} σ {needed:>7} {power:>11.1%}")

    wrong = called_different((0,) * 5, 5, repeats, rng)
    print(f"\nfive equal configurations, 5 seeds each: any two called different in {wrong:.1%} (Holm)")
    searching.report(repeats, rng)


if __name__ == "__main__":
    main()
