"""Says at a sweep's end how long its arms trained, where they did not train with equal compute.

`arms.py` makes a finding of it, which the terminal shows below the best trial, and the report among what
limits the answer. `leaderboard.py` then shows every trial's operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from harness.analysis.layout import span
from harness.config.sweep import SweepConfig
from harness.search.study.trials import TrialRow
from harness.search.suggest.compute import describe_cap
from harness.search.suggest.space import arm_name

PFLOP, IMAGES = "train_pflop", "train_images"  # costs of a trial, see harness.config.objectives.Cost
AT_THE_CAP = 0.95  # of sweep.max_passes
UNEQUAL = 1.1  # arms whose trials took, or saw, more than this many times as much are called unequal


def compute_of_arms(rows: Sequence[TrialRow]) -> dict[str, tuple[list[float], float]]:
    """Return the images that the trials of each arm trained on, and the mean of their PFLOP.

    Trials that were pruned, or stopped early on their own, say nothing of how the arms were meant to compare.
    """
    arms: dict[str, list[TrialRow]] = {}
    for row in rows:
        is_whole = row.state == "complete" and row.epochs_done >= (row.max_epochs or 0)
        if is_whole and {PFLOP, IMAGES} <= set(row.costs):
            arms.setdefault(arm_name(row.params), []).append(row)
    return {
        arm: ([row.costs[IMAGES] for row in trials], fmean(row.costs[PFLOP] for row in trials))
        for arm, trials in arms.items()
    }


def is_unequal(rows: Sequence[TrialRow]) -> bool:
    """Tell whether the arms of a sweep trained with unequal compute."""
    means = [mean for _, mean in compute_of_arms(rows).values()]
    return len(means) > 1 and max(means) > UNEQUAL * min(means)


def unequal_compute(
    rows: Sequence[TrialRow], sweep: SweepConfig, num_train: int | None
) -> tuple[str, float] | None:
    """Return a sentence on how a sweep's arms trained with unequal compute, and the PFLOP of the most.

    Args:
        num_train: how many training images there are; None: not known.

    Returns:
        None where they trained with equal compute.
    """
    if not is_unequal(rows):
        return None
    arms = compute_of_arms(rows)
    most = max(mean for _, mean in arms.values())
    behind = {arm: found for arm, found in arms.items() if UNEQUAL * found[1] < most}
    epochs = max(row.max_epochs or 0 for row in rows)
    most_images = (sweep.max_passes or epochs) * (num_train or math.inf)
    is_capped = all(min(images) > AT_THE_CAP * most_images for images, _ in behind.values())
    if sweep.compute_per_trial is not None and is_capped:
        cap = describe_cap(sweep.max_passes, epochs)
        stopped = (
            f"{arm}: stopped at {cap}, {mean / most:.0%} of the others' compute"
            for arm, (_, mean) in behind.items()
        )
        return "; ".join(stopped), most
    each = (f"{arm} {span(images, ',.0f')} images, {mean:.2g} PFLOP" for arm, (images, mean) in arms.items())
    return f"the arms trained with unequal compute: {'; '.join(each)} a trial", most
