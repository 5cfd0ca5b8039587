"""Decides when a sweep ends: its trials are used up, its target is reached, or no trial gets better.

The functions depend only on the trials and the configuration, so all machines decide the same.
"""

from __future__ import annotations

from harness.config.sweep import SweepConfig
from harness.search.study.trials import TrialRow, best_row


def has_ended(rows: list[TrialRow], sweep: SweepConfig) -> bool:
    """Return whether the sweep needs no further trial."""
    is_spent = sum(row.has_ended for row in rows) >= sweep.num_trials
    return is_spent or reason_to_stop(rows, sweep) is not None


def reason_to_stop(rows: list[TrialRow], sweep: SweepConfig) -> str | None:
    """Return which rule (`target`, `patience_trials`) forbids further trials; None if neither does."""
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
