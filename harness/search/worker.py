"""`harness worker`: a further machine joins a sweep that was begun elsewhere, and may leave at any time.

The machine needs the same code, the same images and access to the run store. Trials can be resumed on
another machine only if all machines share `tracking.dir`. Read `coordinator/scheduler.py` next, which starts
the trials.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from rich.console import Console

from harness.config.compose import CONFIG_DIR
from harness.errors import SweepError, TrackingError
from harness.search.coordinator.completion import num_wanted
from harness.search.coordinator.scheduler import Outcome, Scheduler
from harness.search.executors.base import Executor
from harness.search.executors.build import build_executor
from harness.search.report.messages import build_console, say
from harness.search.report.progress import build_progress, view_of
from harness.search.report.status import find_sweep, open_sweeps
from harness.search.study import keys
from harness.search.study.locate import NOT_BEGUN, SweepContext, locate_sweep, open_study, recorded_plan
from harness.search.study.trials import TrialRow, read_rows
from harness.search.suggest.space import check_space
from harness.search.trial.exit_codes import EXIT_STOPPED
from harness.signals import StopSignals

if TYPE_CHECKING:
    from harness.tracking.store import RunStore


def run_worker(
    name: str | None,
    url: str,
    overrides: Sequence[str] = (),
    *,
    config_dir: Path = CONFIG_DIR,
    console: Console | None = None,
    executor: Executor | None = None,
) -> int:
    """Work on a sweep that was begun elsewhere, until it is complete or this process is asked to stop.

    Args:
        name: the sweep; by default the one that ran last.
        url: the database's address.
        overrides: settings that differ on this machine, such as `data.dir`, `sweep.slots` or `tracking.dir`.

    Returns:
        The exit code: 0; 130 or 143 if a signal or `--stop` ended the command.

    Raises:
        ConfigError: with this machine's settings, the space holds an invalid run.
        SweepError: there is no such sweep, its identity or code differs here, or trials keep failing.
        TrackingError: this machine's run store does not hold the sweep's runs.
    """
    console = console or build_console()
    home, study = _join(name, url, overrides, config_dir)
    home = home.with_plan(check_space(home.plan).plan)
    started = time.monotonic()
    store = _store_with_parent(home, study)
    with closing(executor or build_executor(home.plan.sweep.executor)) as used:
        slots = used.prepare(home.plan)
        scheduler = Scheduler(home, study, store, used, slots, started)
        say(console, f"joined sweep {home.name}: {slots.count} at a time, {slots.threads} CPU thread(s) each")
        with StopSignals() as signals, build_progress(console, home.plan.sweep.metric) as progress:

            def on_tick(rows: list[TrialRow]) -> None:
                progress.update(view_of(rows, home.plan.sweep, started, slots.count))

            outcome = scheduler.run(signals, on_tick)
    rows = read_rows(study)
    say(console, _farewell(outcome, rows, num_wanted(rows, home.plan.sweep)))
    return signals.exit_code or EXIT_STOPPED if outcome == "interrupted" else 0


def _join(
    name: str | None, url: str, overrides: Sequence[str], config_dir: Path
) -> tuple[SweepContext, optuna.Study]:
    known = find_sweep(open_sweeps(url), name)
    plan = recorded_plan(known, url, overrides, config_dir, without="sweep.executor")
    if known.user_attrs.get(keys.PARENT_RUN_ID) is None:
        raise SweepError(NOT_BEGUN.format(name=known.study_name))
    home = locate_sweep(plan)
    study = open_study(home, enqueue=False)
    return home.of(study), study


def _store_with_parent(home: SweepContext, study: optuna.Study) -> RunStore:
    from harness.tracking.store import open_store

    store = open_store(home.plan.base.tracking)
    if not store.has_run(study.user_attrs[keys.PARENT_RUN_ID]):
        raise TrackingError(
            f"{store.uri} does not hold the runs of sweep {home.name!r}: set MLFLOW_TRACKING_URI, or "
            "tracking.dir, to the run store that the sweep was started with"
        )
    return store


def _farewell(outcome: Outcome, rows: Sequence[TrialRow], num_trials: int) -> str:
    ended = sum(row.has_ended for row in rows)
    if outcome == "complete":
        return f"the sweep is complete ({ended} of {num_trials} trials have ended)"
    return f"left: {ended} of {num_trials} trials have ended; what was running here can be resumed anywhere"
