"""The last step of a sweep: evaluates the best trial's checkpoint on the test split, and pictures it.

`sweep.py` calls `evaluate_best` and `look_at_best` once the sweep needs no further trial.
`harness/tracking/readings.py` counts how often the test split was read.
"""

from __future__ import annotations

import logging
import zipfile
from typing import TYPE_CHECKING

import optuna
from rich.console import Console

from harness.errors import HarnessError, TrackingError
from harness.search.report.messages import say
from harness.search.report.parent_run import SweepRecord
from harness.search.study import keys
from harness.search.study.locate import SweepContext, needs_test
from harness.search.study.trials import best_row, read_rows
from harness.signals import StopSignals

if TYPE_CHECKING:
    from harness.tracking.store import RunStore
    from harness.training.evaluate import Temperature

logger = logging.getLogger(__name__)


def evaluate_best(
    home: SweepContext,
    study: optuna.Study,
    store: RunStore,
    sweep_record: SweepRecord,
    console: Console,
    signals: StopSignals,
) -> None:
    """Evaluate the best trial's checkpoint on the test split, and store the result in the study.

    A repeated command does not evaluate the same trial again. If the sweep gets more trials and another one
    becomes the best, that one is evaluated too, which counts as another reading.

    Raises:
        KeyboardInterrupt: a signal asked this process to stop.
    """
    best = best_row(read_rows(study, home.runs), home.plan.sweep.direction)
    if best is None or best.checkpoint is None or not needs_test(study, home.plan, best):
        return
    from harness.tracking import names
    from harness.training.devices.machine import prepare_process
    from harness.training.evaluate import evaluate_checkpoint

    say(console, f"evaluating trial {best.number}'s checkpoint on the test split …")
    prepare_process(None, home.plan.base.trainer.keep_memory)
    number = _note_reading(store, sweep_record.tracker.run_id, best.run_id or "", home.command)
    with signals.raising():
        metrics = evaluate_checkpoint(
            best.checkpoint,
            split="test",
            tracker=sweep_record.tracker,
            temperature=_temperature(home, best.run_id),
            closely=True,
        )
    sweep_record.tracker.set_tags({names.TESTED_RUN: best.run_id or ""})
    study.set_user_attr(keys.TEST, {"trial": best.number, "metrics": metrics, "reading": number})


def look_at_best(home: SweepContext, study: optuna.Study, console: Console, signals: StopSignals) -> None:
    """Record with the best trial's run the pictures that the other trials do not get, once for each trial.

    Raises:
        KeyboardInterrupt: a signal asked this process to stop.
    """
    best = best_row(read_rows(study, home.runs), home.plan.sweep.direction)
    if best is None or best.checkpoint is None or best.run_id is None:
        return
    # torch is imported only for a file that torch may have written: a checkpoint is a zip file.
    if study.user_attrs.get(keys.PICTURED) == best.number or not zipfile.is_zipfile(best.checkpoint):
        return
    from harness.training.devices.machine import prepare_process
    from harness.training.evaluate import look_at_trial

    say(console, f"drawing what trial {best.number} gets right and wrong …")
    prepare_process(None, home.plan.base.trainer.keep_memory)
    try:
        with signals.raising():
            look_at_trial(home.plan.base.tracking, best.run_id, best.checkpoint)
    except HarnessError as error:
        logger.warning("trial %d has no pictures: %s", best.number, error)
    study.set_user_attr(keys.PICTURED, best.number)


def _temperature(home: SweepContext, run_id: str | None) -> Temperature:
    """Return the temperature that a trial has recorded; "fit" where that cannot be read."""
    from harness.tracking.runs import get_run
    from harness.training.evaluate import temperature_of

    if run_id is None:
        return "fit"
    try:
        return temperature_of(get_run(home.plan.base.tracking, run_id))
    except TrackingError as error:
        logger.info("the best trial's run cannot be read: %s", error)
        return "fit"


def _note_reading(store: RunStore, parent_run_id: str, run_id: str, command: str) -> int | None:
    """Record that the test split is read now.

    Returns:
        The number of this reading in the sweep, from 1; None if the earlier ones are not known.
    """
    from harness.tracking.readings import note_reading

    try:
        tags = store.tags_of(parent_run_id)
    except TrackingError as error:
        logger.warning("how often the test split was read before is not known: %s", error)
        tags = None
    reading = note_reading(store, tags, parent_run_id, run_id, command)
    return None if reading.before is None else reading.before + 1


def describe_readings(home: SweepContext, study: optuna.Study) -> str | None:
    """Return in words how often the test split was read for the sweep; None if never, or if unknown."""
    from harness.tracking.readings import count_readings, describe_reading
    from harness.tracking.store import open_store

    number, parent = (
        study.user_attrs.get(keys.TEST, {}).get("reading"),
        study.user_attrs.get(keys.PARENT_RUN_ID),
    )
    if number is None or parent is None:
        return None
    try:
        tags = open_store(home.plan.base.tracking).tags_of(parent)
        return describe_reading(number, count_readings(tags), "sweep")
    except TrackingError as error:
        logger.warning("how often the test split was read is not known: %s", error)
        return None
