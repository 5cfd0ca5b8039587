"""Replicates: one configuration trained again, with a seed of its own.

When the search has ended, the best trials are trained again with fresh seeds (`sweep.replicate`): the
scheduler calls `add_replicates`, which enqueues them as further trials of the study. Their scores say how
much a seed changes. The replicated trial's own score does not count among them, because it was chosen for
being high.

A configuration that the search itself draws again is trained with another seed, too: with the same seed, the
second training would give exactly the same score and look like a second piece of evidence. `attempt.py` calls
`choose_seed`; the reports call the other functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import optuna

from harness.config.space import grid_points
from harness.config.sweep import SweepConfig
from harness.search.database.optuna_private import study_id
from harness.search.study import keys
from harness.search.study.trials import TrialRow, ranked, read_rows, searched, storage_of

MAX_SEED = 2**32
MAX_NAMED = 8  # replicates in one line


def missing_replicates(rows: Sequence[TrialRow], sweep: SweepConfig) -> list[tuple[int, int]]:
    """Return the replicates that `sweep.replicate` asks for beyond those that exist, however these ended.

    Call it once the search has ended: it takes the best complete trials as they stand now.

    Returns:
        The replicated trial's number and the seed of each. The seeds are those after the highest seed of the
        search, the same ones for each trial, so that the trials can be compared seed by seed.
    """
    wanted, search = sweep.replicate, searched(rows)
    if not wanted.seeds:
        return []
    complete = [row for row in ranked(search, sweep.direction) if row.state == "complete"]
    leaders = complete[: wanted.top]
    first = 1 + max((row.seed or 0 for row in search), default=0)
    missing = []
    for leader in leaders:
        known = {row.seed for row in rows if row.replicate_of == leader.number}
        fresh = (seed for seed in itertools.count(first) if seed not in known)
        missing += [(leader.number, next(fresh)) for _ in range(wanted.seeds - len(known))]
    return sorted(missing, key=lambda pair: pair[1])  # seed by seed, if the time is too short for all


def add_replicates(study: optuna.Study, sweep: SweepConfig) -> None:
    """Enqueue the replicates that are missing; a repeated call adds nothing.

    Several processes may call this at once, and a process may be killed in between: the trials are read and
    added under the sweep's lock, each together with its seed.
    """
    storage = storage_of(study)

    def add() -> None:
        rows = read_rows(study)
        for number, seed in missing_replicates(rows, sweep):
            attrs = {keys.REPLICATE_OF: number, keys.SEED: seed % MAX_SEED}
            if sweep.replicate.fresh_splits:
                attrs[keys.SPLIT_SEED] = seed % MAX_SEED
            study.enqueue_trial(rows[number].params, user_attrs=attrs)

    with storage.exclusive(study.study_name):
        storage.retry(add)


def choose_seed(study: optuna.Study, trial_id: int, overrides: Sequence[str], seed: int) -> int:
    """Return the seed that a trial trains with, and store it with the trial and its configuration.

    The seed is the configured one, or the next higher one that no trial of the same configuration has. Two
    processes that draw one configuration at the same time get different seeds, because they choose under the
    sweep's lock. The seed of a replicate was chosen when it was enqueued.

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
        if (fixed := storage.get_trial_head(trial_id, keys.SEED).attr) is not None:
            storage.set_trial_user_attrs(trial_id, {keys.OVERRIDES: configuration})
            return int(fixed)
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
    pairs = {row.number: row.replicate_of for row in rows if row.replicate_of is not None}
    for row in searched(rows):
        configuration = frozenset((path, repr(value)) for path, value in row.params.items() if path != "seed")
        if row.params and (earlier := first.setdefault(configuration, row.number)) != row.number:
            pairs[row.number] = earlier
    return pairs


def describe_replicates(rows: Sequence[TrialRow]) -> str | None:
    """Return which trials of the search repeat which, and with which seed; None if none do."""
    search = searched(rows)
    seeds = {row.number: row.seed for row in search}
    named = []
    for number, first in replicated(search).items():
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
