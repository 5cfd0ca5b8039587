"""A second command for a running sweep shows its progress, and runs it if the first command ends early.

`sweep.py` calls `follow` when another process holds the coordinator lock.
"""

from __future__ import annotations

import time

import optuna
from rich.console import Console

from harness.search.database.locks import LockedError
from harness.search.report.progress import build_progress, view_of
from harness.search.study.locate import SweepContext, coordinator_lock_in
from harness.search.study.trials import read_rows, storage_of
from harness.signals import StopSignals

LOOK_S = 2.0
FOLLOWING = "sweep {name} is being run by another process: following it, and taking over if it ends early"


def follow(home: SweepContext, study: optuna.Study, console: Console, started: float) -> int:
    """Show the sweep's progress until no process coordinates it any more.

    Returns:
        128 + the signal's number if a signal ended this process before that; otherwise 0.
    """
    sweep = home.plan.sweep
    with StopSignals() as signals, build_progress(console, sweep.metric) as progress:
        while not signals.count:
            if not is_coordinated(study):
                return 0
            progress.update(view_of(read_rows(study), sweep, started, 1))
            time.sleep(LOOK_S)
    return signals.exit_code


def is_coordinated(study: optuna.Study) -> bool:
    """Return whether some process holds the coordinator lock of the sweep."""
    try:
        with coordinator_lock_in(storage_of(study), study.study_name):
            return False
    except LockedError:
        return True
