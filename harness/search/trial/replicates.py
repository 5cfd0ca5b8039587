"""Replicates: a configuration that is drawn again is trained again, with a seed of its own.

With the same seed, the second training would give exactly the same score and look like a second piece of
evidence. Samplers of small spaces draw one configuration often, and `sweep.enqueue` may repeat one on
purpose. `attempt.py` calls `choose_seed`; the reports call the other functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import optuna

from harness.config.space import grid_points
from harness.config.sweep import SweepConfig
from harness.search.database.optuna_private import study_id
from harness.search.study import keys
from harness.search.study.trials import TrialRow, storage_of

MAX_SEED = 2**32
MAX_NAMED = 8  # replicates in one line


def choose_seed(study: optuna.Study, trial_id: int, overrides: Sequence[str], seed: int) -> int:
    """Return the seed that a trial trains with, and store it with the trial and its configuration.

    The seed is the configured one, or the next higher one that no trial of the same configuration has. Two
    processes that draw one configuration at the same time get different seeds, because they choose under the
    sweep's lock.

    Args:
        overrides: the trial's configuration, as overrides.
        seed: the configured one.
    """
    storage = storage_of(study)
    configuration = [text for text in overrides if not text.startswith("seed=")]

    def choose() -> int:
        if storage.get_trial_head(trial_id, keys.OVERRIDES).attr is not None:  # an earlier attempt chose it
            known = storage.get_trial_head(trial_id, keys.SEED).attr
            return seed if known is None else int(known)  # None: an earlier version used the run's
        seeds = storage.get_attr_where(study_id(study), keys.SEED, keys.OVERRIDES, configuration)
        taken = {seed if known is None else known for known in seeds}
        candidates = ((seed + step) % MAX_SEED for step in itertools.count())
        chosen = next(candidate for candidate in candidates if candidate not in taken)
        storage.set_trial_user_attrs(trial_id, {keys.OVERRIDES: configuration, keys.SEED: chosen})
        return chosen

    return storage.transact(study.study_name, choose)


def replicated(rows: Sequence[TrialRow]) -> dict[int, int]:
    """Return the trials that repeat the configuration of an earlier one: number -> number of the first."""
    first: dict[frozenset[tuple[str, str]], int] = {}
    pairs = {}
    for row in rows:
        configuration = frozenset((path, repr(value)) for path, value in row.params.items() if path != "seed")
        if row.params and (earlier := first.setdefault(configuration, row.number)) != row.number:
            pairs[row.number] = earlier
    return pairs


def describe_replicates(rows: Sequence[TrialRow]) -> str | None:
    """Return which trials are replicates of which, and with which seed; None if there are none."""
    seeds = {row.number: row.seed for row in rows}
    named = []
    for number, first in replicated(rows).items():
        seed = "same seed" if seeds[number] is None else f"seed {seeds[number]}"
        named.append(f"trial {number} of {first} ({seed})")
    if not named:
        return None
    more = f" and {len(named) - MAX_NAMED} more, see leaderboard.csv" if len(named) > MAX_NAMED else ""
    return f"replicates, one configuration trained again: {', '.join(named[:MAX_NAMED])}{more}"


def warn_of_replicates(sweep: SweepConfig) -> str | None:
    """Return a note if a sweep has more trials than its space has configurations; otherwise None."""
    try:
        num_configurations = len(grid_points(sweep.space))
    except ValueError:  # a range of numbers, or too many to count
        return None
    if num_configurations >= sweep.num_trials:
        return None
    return (
        f"note: the space has {num_configurations} configuration{'s' * (num_configurations != 1)}, the sweep "
        f"{sweep.num_trials} trials: what is drawn again is trained with another seed, as a replicate"
    )
