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
from scipy import stats
from statsmodels.stats.power import TTestPower

from experiments.evidence import searching
from harness.analysis.optimism import estimate_optimism, wilson
from harness.analysis.seeds import Estimate, compare_groups, estimate, seeds_needed

SIZES = (3, 5, 10)  # seeds
NUM_IMAGES = 2000  # of the simulated validation split
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


def optimism(
    num_trials: int, num_epochs: int, spread: float, repeats: int, rng: np.random.Generator
) -> np.ndarray:
    """Simulate sweeps, and return what the best score and its correction are worth.

    The trials' true accuracies are spread around 85 %. An image that is hard for one trial is hard for others
    (correlation 0.6 on the scale of the latent difficulty), and even more so for another epoch of the trial
    (0.9). A trial keeps the epoch with the best score; all its epochs are equally good.

    Returns:
        How often the corrected interval holds the best trial's true accuracy, and how often Wilson's interval
        around the best score does; the mean error of the best score, and that of the corrected one.
    """
    held = np.zeros(4)
    for _ in range(repeats):
        true_T = np.clip(rng.normal(0.85, spread, num_trials), 0.5, 0.99)
        of_image_N = rng.normal(size=NUM_IMAGES)
        kept = {}
        for trial, true in enumerate(true_T):
            of_trial_N = rng.normal(size=NUM_IMAGES)
            epochs_EN = rng.normal(size=(num_epochs, NUM_IMAGES))
            latent_EN = np.sqrt(0.6) * of_image_N + np.sqrt(0.3) * of_trial_N + np.sqrt(0.1) * epochs_EN
            correct_EN = latent_EN < stats.norm.ppf(true)
            kept[trial] = correct_EN[correct_EN.mean(axis=1).argmax()]
        found = estimate_optimism(kept, seed=int(rng.integers(2**31)))
        assert found is not None
        best = true_T[max(kept, key=lambda trial: kept[trial].mean())]
        low, high = wilson(found.reported, NUM_IMAGES)
        held += [
            found.low <= best <= found.high,
            low <= best <= high,
            found.reported - best,
            found.corrected - best,
        ]
    return held / repeats


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

    sweeps = max(1, repeats // 5)
    print(f"\nthe best trial's true accuracy: {sweeps:,} sweeps a row, {NUM_IMAGES:,} validation images")
    print("spread of   trials   epochs   held by the          by Wilson's around   mean error of")
    print("trials                        corrected interval   the best score       the best, corrected")
    for spread in (0.0, 0.005, 0.02):
        for num_trials, num_epochs in ((8, 1), (20, 1), (80, 1), (8, 5)):
            ours, wilsons, best, corrected = optimism(num_trials, num_epochs, spread, sweeps, rng)
            rates = f"{ours:>21.1%} {wilsons:>20.1%} {best:>16.4f} {corrected:>12.4f}"
            print(f"{spread:>9.1%} {num_trials:>8} {num_epochs:>8} {rates}", flush=True)

    wrong = called_different((0,) * 5, 5, repeats, rng)
    print(f"\nfive equal configurations, 5 seeds each: any two called different in {wrong:.1%} (Holm)")
    searching.report(repeats, rng)


if __name__ == "__main__":
    main()
