"""How much of a sweep's best score comes from choosing it: the optimism of a maximum over many trials.

The best of many scores on one validation split is too high on average, since chance is chosen too. At a
sweep's end, `harness.search.report.optimism` calls `estimate_optimism` with every complete trial's answers to
the validation images. `python -m experiments.evidence` checks the interval by simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.analysis.seeds import LEVEL

NUM_RESAMPLES = 400
RESAMPLES_AT_ONCE = 50  # bounds the memory: each takes a weight per image


@dataclass(frozen=True)
class Optimism:
    """A sweep's best score, corrected for its choice among trials on the same validation images."""

    reported: float  # the best trial's own score
    corrected: float
    low: float  # of the 95 % interval for the best trial's score on further images of the same kind
    high: float
    num_trials: int
    num_images: int

    def __str__(self) -> str:
        interval = f"95 % interval {self.low:.4f} to {self.high:.4f}, over images"
        return (
            f"{self.reported:.4f} is the best of {self.num_trials} single runs on the same "
            f"{self.num_images:,} images; corrected for that choice it is {self.corrected:.4f} ({interval}; "
            "the choice of the epoch is not corrected)"
        )


def estimate_optimism(correct: Mapping[int, np.ndarray], seed: int = 0) -> Optimism | None:
    """Return the best trial's accuracy, corrected for its choice among all trials; None for fewer than two.

    The images are resampled with replacement. In each resample the best trial is chosen anew, and scored on
    the images that the resample left out: choice and score are then independent. The mean of these scores is
    the corrected accuracy. Its interval is Wilson's, as if there were fewer images: so many that the variance
    of the accuracy over images is raised by that of the accuracies of the trials chosen in the resamples.

    Source of the estimate: I. Tsamardinos, E. Greasidou, G. Borboudakis, "Bootstrapping the out-of-sample
    predictions for efficient and accurate cross-validation", Machine Learning 107 (2018), there called
    BBC-CV. The interval is our own, as theirs is that of the 37 % of the images that a resample leaves out.

    Args:
        correct: of each complete trial by its number, whether each validation image was predicted right:
            bool (N,), the same images in the same order.
    """
    if len(correct) < 2:
        return None
    correct_TN = np.stack([correct[number] for number in sorted(correct)]).astype(np.float32)
    num_trials, num_images = correct_TN.shape
    rng = np.random.default_rng(seed)
    full_T = correct_TN.mean(axis=1)
    scores, chosen = [], []
    for _ in range(0, NUM_RESAMPLES, RESAMPLES_AT_ONCE):
        # Poisson's weights stand for drawing with replacement: the same to within a share of 1 / N.
        weights_BN = rng.poisson(1.0, (RESAMPLES_AT_ONCE, num_images)).astype(np.float32)
        chosen_B = (weights_BN @ correct_TN.T).argmax(axis=1)
        left_out_BN = weights_BN == 0
        right_B = (left_out_BN & (correct_TN[chosen_B] > 0)).sum(axis=1)
        scores.append(right_B / np.maximum(left_out_BN.sum(axis=1), 1))
        chosen.append(full_T[chosen_B])
    corrected = float(np.concatenate(scores).mean())
    over_images = corrected * (1 - corrected) / num_images
    over_choices = float(np.concatenate(chosen).var())
    count = num_images if over_images == 0 else num_images * over_images / (over_images + over_choices)
    low, high = wilson(corrected, count)
    return Optimism(float(full_T.max()), corrected, low, high, num_trials, num_images)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval for a share of so many images."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(share * count, count, alpha=1 - LEVEL, method="wilson")
    return float(low), float(high)
