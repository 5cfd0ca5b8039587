"""Says at a sweep's end how long its arms trained, where they did not train with equal compute.

`messages.py` prints these lines below the best trial, `html/page.py` puts them on the report, and
`leaderboard.py` then shows every trial's operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from harness.config.sweep import SweepConfig
from harness.search.study.trials import TrialRow
from harness.search.suggest.compute import describe_cap
from harness.search.suggest.space import arm_name

PFLOP, IMAGES = "train_pflop", "train_images"  # costs of a trial, see harness.config.objectives.Cost
AT_THE_CAP = 0.95  # of sweep.max_passes
UNEQUAL = 1.1  # arms whose trials took more than this many times as much are said to be unequal


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


def compute_lines(rows: Sequence[TrialRow], sweep: SweepConfig, num_train: int) -> list[str]:
    """Return what limits the comparison of a sweep's arms; empty where they trained with equal compute.

    Args:
        num_train: How many training images there are.
    """
    if not is_unequal(rows):
        return []
    arms = compute_of_arms(rows)
    most = max(mean for _, mean in arms.values())
    behind = {arm: found for arm, found in arms.items() if UNEQUAL * found[1] < most}
    epochs = max(row.max_epochs or 0 for row in rows)
    most_images = (sweep.max_passes or epochs) * num_train
    is_capped = all(min(images) > AT_THE_CAP * most_images for images, _ in behind.values())
    if sweep.compute_per_trial is not None and is_capped:
        return [
            f"{arm}: stopped at {describe_cap(sweep.max_passes, epochs)}, "
            f"{mean / most:.0%} of the others' compute"
            for arm, (_, mean) in behind.items()
        ]
    each = (f"{arm} {_range(images)} images, {mean:.2g} PFLOP" for arm, (images, mean) in arms.items())
    remedy = "" if sweep.compute_per_trial else " (sweep.compute_per_trial=auto would equalise it)"
    return [f"the arms trained with unequal compute{remedy}: {'; '.join(each)} a trial"]


def _range(images: Sequence[float]) -> str:
    low, high = (f"{value:,.0f}" for value in (min(images), max(images)))
    return low if low == high else f"{low} to {high}"
