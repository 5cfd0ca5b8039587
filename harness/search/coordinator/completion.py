"""Decides when a sweep ends: its trials are used up, its target is reached, or no trial gets better.

Then the best trials are replicated (`sweep.replicate`), and the sweep ends with the last replicate.

The functions depend only on the trials and the configuration, so all machines decide the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.config.sweep import SweepConfig
from harness.search.study.trials import TrialRow, best_row, searched
from harness.search.trial.replicates import missing_replicates


def has_ended(rows: Sequence[TrialRow], sweep: SweepConfig) -> bool:
    """Return whether the sweep needs no further trial, neither of the search nor a replicate."""
    return (
        search_has_ended(rows, sweep)
        and all(row.has_ended for row in rows if row.replicate_of is not None)
        and not missing_replicates(rows, sweep)
    )


def search_has_ended(rows: Sequence[TrialRow], sweep: SweepConfig) -> bool:
    """Return whether the sweep needs no further trial but replicates."""
    is_spent = sum(row.has_ended for row in searched(rows)) >= sweep.num_trials
    return is_spent or reason_to_stop(rows, sweep) is not None


def num_wanted(rows: Sequence[TrialRow], sweep: SweepConfig) -> int:
    """Return how many trials the sweep will have: of the search, and the replicates that exist or will."""
    existing = len(rows) - len(searched(rows))
    if search_has_ended(rows, sweep):
        return sweep.num_trials + existing + len(missing_replicates(rows, sweep))
    return sweep.num_trials + max(existing, sweep.replicate.top * sweep.replicate.seeds)


def reason_to_stop(rows: Sequence[TrialRow], sweep: SweepConfig) -> str | None:
    """Return which rule (`target`, `patience_trials`) forbids further trials; None if neither does."""
    rows = searched(rows)  # the replicates may say that another one is the best; the search does not go on
    best = best_row(rows, sweep.direction)
    if best is None or best.score is None:
        return None
    sign = -1.0 if sweep.direction == "minimize" else 1.0
    if sweep.target is not None and sign * best.score >= sign * sweep.target:
        return f"trial {best.number} has reached sweep.target={sweep.target:g}"
    later = sum(row.has_ended and row.number > best.number for row in rows)
    if sweep.patience_trials is not None and later >= sweep.patience_trials:
        return (
            f"{later} trials have ended since trial {best.number} without a better one "
            f"(sweep.patience_trials={sweep.patience_trials})"
        )
    return None
