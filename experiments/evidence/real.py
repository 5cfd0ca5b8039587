"""Ten real pairs of one configuration, trained from different seeds, compared as `harness compare` does it.

`python -m experiments.evidence --real` calls `main`. The scores are those of a small network after 2 epochs
on scikit-learn's digits, so their distribution is one that accuracies have, not one that was assumed. Each
run is a complete `train` of the harness, without a record.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from harness.analysis.seeds import compare_groups, estimate

NUM_PAIRS, NUM_SEEDS = 10, 5  # and so many seeds on each side of a pair
CONFIGURATION = ("data=digits", "model=lenet", "optim.lr=0.005", "trainer.max_epochs=2", "trainer.device=cpu")


def trained_scores(count: int) -> list[float]:
    """Return the validation accuracy of one configuration from seeds 0, 1, …, all on the same images."""
    from harness.config.compose import compose_run
    from harness.tracking.tracker import SilentTracker
    from harness.training.train import train

    config = compose_run(list(CONFIGURATION))
    scores = []
    for seed in range(count):
        with tempfile.TemporaryDirectory() as folder:
            result = train(
                config.model_copy(update={"seed": seed}), tracker=SilentTracker(), checkpoint_dir=Path(folder)
            )
        assert result.score is not None
        scores.append(float(result.score))
        print(".", end="", flush=True)
    print()
    return scores


def main() -> None:
    began = time.monotonic()
    scores = trained_scores(2 * NUM_PAIRS * NUM_SEEDS)
    minutes = (time.monotonic() - began) / 60
    print(f"{' '.join(CONFIGURATION)}: {len(scores)} runs from different seeds, {minutes:.1f} minutes")
    print(
        f"val/accuracy: mean {np.mean(scores):.4f}, deviation {np.std(scores, ddof=1):.4f}, "
        f"{min(scores):.4f} to {max(scores):.4f}"
    )
    found, held = 0, 0
    for pair in range(NUM_PAIRS):
        sides = {}
        for side, name in enumerate("AB"):
            first = (2 * pair + side) * NUM_SEEDS
            sides[name] = dict(enumerate(scores[first : first + NUM_SEEDS], start=first))
            interval = estimate(list(sides[name].values()), is_share=True)
            if interval.low is not None and interval.high is not None:
                held += int(interval.low <= np.mean(scores) <= interval.high)
        (compared,) = compare_groups(sides)  # no seed is shared: Welch's test
        found += compared.is_found
        print(f"pair {pair + 1:>2}: difference {compared.mean:.4f}, p = {compared.p_value:.3f}")
    print(f"called different: {found} of {NUM_PAIRS} pairs of the same configuration")
    print(f"intervals that hold the mean of all runs: {held} of {2 * NUM_PAIRS}")
