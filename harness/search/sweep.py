"""Runs a sweep from its plan to its leaderboard: read `run_sweep` first in this folder.

Every `harness sweep` command reads the database, does the work that is missing, and prints how to go on. A
first command, a repeated one, one after Ctrl-C and one after a power cut run the same code; they differ only
in what they find in the database. Read `coordinator/scheduler.py` next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from rich.console import Console

from harness.config.compose import CONFIG_DIR, SweepPlan
from harness.config.sampling import ReplicateConfig
from harness.config.space import as_yaml
from harness.config.sweep import SweepConfig
from harness.errors import ConfigError, StorageError, SweepError, TrackingError
from harness.search.coordinator.checkpoint_cleanup import CheckpointCleanup
from harness.search.coordinator.completion import has_ended, search_has_ended
from harness.search.coordinator.compute import describe_compute, settle_compute
from harness.search.coordinator.evaluate_best import describe_readings, evaluate_best, look_at_best
from harness.search.coordinator.follow import FOLLOWING, follow
from harness.search.coordinator.measure_slots import is_measured
from harness.search.coordinator.scheduler import Outcome, Scheduler
from harness.search.coordinator.slots import find_slots
from harness.search.database.locks import LockedError, LostLockError
from harness.search.executors.base import Executor
from harness.search.executors.build import build_executor
from harness.search.report import parent_run as record
from harness.search.report.findings import Finding
from harness.search.report.messages import build_console, greet, say, show_result
from harness.search.report.parent_run import SweepRecord
from harness.search.report.progress import build_progress, view_of
from harness.search.report.status import find_sweep, open_sweeps
from harness.search.report.verdict import Verdict, judge_study
from harness.search.study import keys
from harness.search.study.extend import extend_sweep
from harness.search.study.locate import (
    SweepContext,
    coordinator_lock,
    existing_study,
    is_closed,
    locate_sweep,
    open_study,
    recorded_plan,
)
from harness.search.study.trials import TrialRow, best_row, read_rows, searched
from harness.search.suggest.space import check_space, describe_dimension
from harness.search.trial.exit_codes import EXIT_STOPPED
from harness.signals import StopSignals

if TYPE_CHECKING:
    from harness.tracking.store import RunStore


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """The state of a sweep at the end of one command."""

    name: str
    config: SweepConfig
    outcome: Outcome
    exit_code: int  # 0; 130 or 143 if a signal or `--stop` ended the command
    rows: list[TrialRow]
    best: TrialRow | None
    test_metrics: dict[str, float] | None  # of the best trial's checkpoint, where it was evaluated
    test_readings: str | None  # how often the test split was read, and which reading that was, in words
    parent_run_id: str | None
    verdict: Verdict
    findings: list[Finding] = field(default_factory=list)  # what limits the answer, see report/audit.py


def run_sweep(
    plan: SweepPlan,
    *,
    console: Console | None = None,
    command: str | None = None,
    executor: Executor | None = None,
    extend: bool = False,
) -> SweepResult:
    """Run a sweep, or the part of it that is missing, and show its leaderboard.

    Args:
        command: the shell command that continues the sweep; by default it is made from the plan's overrides.
        executor: starts the trials' processes; by default the one that `sweep.executor` names.
        extend: enlarge the existing sweep to the plan's space and constraints first.

    Raises:
        ConfigError: the space holds an invalid run, or the configuration asks for a missing device.
        DataError: the images cannot be loaded.
        SweepError: the name belongs to another sweep, the sweep is running (with `extend`), or trials keep
            failing.
        TrackingError: the run store cannot be written.
    """
    started = time.monotonic()
    console = console or build_console()
    home = locate_sweep(plan, command)
    if extend:
        home = home.with_plan(check_space(home.plan).plan)
        with coordinator_lock(home):
            say(console, extend_sweep(home))
    study = existing_study(home)
    if study is not None and is_closed(study, plan):
        _note_call(home, study)
        result = _result(home, study, "complete", 0)
    else:
        home = home.with_plan(check_space(home.plan).plan)
        store = _open_store(home)
        known = home if study is None else home.of(study)
        CheckpointCleanup.of(known, store).check_room([] if study is None else read_rows(study))
        with closing(executor or build_executor(plan.sweep.executor)) as used:
            ended: SweepResult | None = None
            while ended is None:
                ended = _coordinate(home, store, used, console, started) or _follow(home, console, started)
        result = ended
    show_result(console, home, result)
    return result


def replicate_sweep(
    name: str | None,
    url: str,
    overrides: Sequence[str] = (),
    *,
    asked: Mapping[str, int | bool],
    config_dir: Path = CONFIG_DIR,
    console: Console | None = None,
    executor: Executor | None = None,
) -> SweepResult:
    """Train the best configurations of an ended search again with fresh seeds, and show what they say.

    It is the sweep's own command with another `sweep.replicate`: replicates that exist count, and an
    interrupted one goes on.

    Args:
        name: the sweep; by default the one that ran last.
        url: the database's address.
        overrides: settings that differ now, such as `sweep.slots` or `sweep.max_minutes`.
        asked: the keys of `sweep.replicate`, such as `top` and `seeds`.

    Raises:
        SweepError: there is no such sweep, its search has not ended, or no trial of it is complete.
        HarnessError: as for `run_sweep`.
    """
    study = find_sweep(open_sweeps(url), name)
    wanted = [f"sweep.replicate.{key}={as_yaml(value)}" for key, value in asked.items()]
    plan = recorded_plan(study, url, [*overrides, *wanted], config_dir)
    if not plan.sweep.replicate.seeds:
        raise ConfigError("no fresh seed is asked for (--seeds 0): with 3 or more there is an interval")
    rows = read_rows(study)
    if not search_has_ended(rows, plan.sweep):
        ended = sum(row.has_ended for row in searched(rows))
        raise SweepError(
            f"sweep {study.study_name!r} has run {ended} of its {plan.sweep.num_trials} trials: let it end "
            "(repeat its command), then its best ones can be trained again"
        )
    if best_row(rows, plan.sweep.direction) is None:
        raise SweepError(f"sweep {study.study_name!r} has no complete trial that could be trained again")
    return run_sweep(plan, console=console, executor=executor)


def describe_sweep(plan: SweepPlan) -> str:
    """Describe a sweep without running it: the space, the budget, and one run of every arm.

    Raises:
        HarnessError: the error that would stop the sweep before its first trial.
    """
    from harness.training.commands.dry_run import describe_run

    sweep = plan.sweep
    lines = [
        f"objective:   {sweep.direction} {sweep.metric} in {sweep.num_trials} trials ({sweep.sampler.kind})",
        *([f"against:     {second.direction} {second.metric}"] if (second := sweep.second_objective) else []),
        *([_describe_replicates(sweep.replicate)] if sweep.replicate.seeds else []),
        *(f"constraint:  {constraint}" for constraint in sweep.parsed_constraints()),
        f"slots:       {_describe_slots(plan)}",
        *(f"compute:     {line}" for line in _describe_compute(plan)),
        *(f"space:       {path}: {describe_dimension(d)}" for path, d in sweep.space.items()),
    ]
    for arm, config in check_space(plan).runs.items():
        lines += ["", f"── {arm or 'every trial'}", describe_run(config)]
    return "\n".join(lines)


def _describe_replicates(asked: ReplicateConfig) -> str:
    splits = ", each on validation images of its own" if asked.fresh_splits else ""
    return f"replicates:  the best {asked.top} again with {asked.seeds} fresh seeds{splits}"


def _describe_compute(plan: SweepPlan) -> list[str]:
    asked = plan.sweep.compute_per_trial
    return describe_compute(plan, None if asked == "auto" else asked)


def _describe_slots(plan: SweepPlan) -> str:
    if plan.sweep.executor.kind != "local":
        return (
            f"{plan.sweep.slots} at a time on {plan.sweep.executor.kind} (auto: as many as the cluster holds)"
        )
    if is_measured(plan):
        return "auto: measured at the start"
    slots = find_slots(plan.sweep, plan.base)
    return f"{slots.count} at a time, {slots.threads} CPU threads each"


def _coordinate(
    home: SweepContext, store: RunStore, executor: Executor, console: Console, started: float
) -> SweepResult | None:
    """Run the sweep's trials and record the result; None if another process coordinates the sweep.

    That process may have held the coordinator lock already, or it has taken the lock while we ran, after a
    restart of the database server released it.
    """
    sweep = home.plan.sweep
    with ExitStack() as stack:
        try:
            keep_place = stack.enter_context(coordinator_lock(home))
        except LockedError:
            return None
        slots = executor.prepare(home.plan)
        study = open_study(home)
        home = home.of(study)
        study.set_user_attr(keys.SLOTS, asdict(slots))
        pflop = settle_compute(home.plan, study, slots, sweep.replicate.top * sweep.replicate.seeds)
        try:
            with StopSignals() as signals, _sweep_record(home, study, store, keep_place) as sweep_record:
                scheduler = Scheduler(home, study, store, executor, slots, started, keep_place)
                rows = read_rows(study)
                greet(console, home, rows, slots)
                if not any(row.has_ended for row in rows):
                    for line in describe_compute(home.plan, pflop):
                        say(console, f"compute: {line}")
                with build_progress(console, sweep.metric) as progress:

                    def on_tick(rows: list[TrialRow]) -> None:
                        sweep_record.follow(rows)
                        progress.update(view_of(rows, sweep, started, slots.count))

                    outcome = scheduler.run(signals, on_tick)
                if outcome == "interrupted" and has_ended(read_rows(study), sweep):
                    outcome = "complete"  # the signal came while the last trial ended
                if outcome != "interrupted" and has_ended(read_rows(study), sweep):
                    try:
                        evaluate_best(home, study, store, sweep_record, console, signals)
                        look_at_best(home, study, console, signals)
                    except KeyboardInterrupt:
                        outcome = "interrupted"
                sweep_record.status = "FINISHED" if outcome == "complete" else "KILLED"
        except LostLockError:
            if not signals.count:
                return None
            outcome = "interrupted"  # somebody who wanted this command to end does not wait for the other
        return _result(home, study, outcome, signals.exit_code or EXIT_STOPPED)


def _follow(home: SweepContext, console: Console, started: float) -> SweepResult | None:
    """Show a sweep that another process coordinates; None if that process ends before the sweep does."""
    say(console, FOLLOWING.format(name=home.name))
    study = open_study(home)
    if exit_code := follow(home, study, console, started):
        return _result(home, study, "interrupted", exit_code)
    return _result(home, study, "complete", 0) if is_closed(study, home.plan) else None


def _note_call(home: SweepContext, study: optuna.Study) -> None:
    """Record when this command ran: `make compare`, `make export` and `--status` take the latest sweep."""
    run_id = study.user_attrs.get(keys.PARENT_RUN_ID)
    try:
        study.set_user_attr(keys.CALLED, time.time())
        if run_id is not None:
            _open_store(home).note(run_id, record.activity(is_new_call=True))
    except (StorageError, TrackingError) as error:
        logger.warning("it is not noted that this sweep was called last: %s", error)


def _open_store(home: SweepContext) -> RunStore:
    from harness.tracking.store import open_store

    return open_store(home.plan.base.tracking)


@contextmanager
def _sweep_record(
    home: SweepContext, study: optuna.Study, store: RunStore, keep_place: Callable[[], None]
) -> Iterator[SweepRecord]:
    """Keep the sweep's MLflow run (the parent run) open, and close it with this command's outcome.

    Before each write `keep_place` makes sure that no other process has become the coordinator, as it may when
    the database server was restarted since the scheduler last looked: both would record the same points.
    """
    from harness.tracking import names
    from harness.tracking.views import sweep_view

    identity = {names.STUDY: study.user_attrs.get(keys.SWEEP_ID, home.name)}
    known = study.user_attrs.get(keys.PARENT_RUN_ID)
    run_id = known or store.find_run(home.experiment, identity)  # perhaps opened by a killed command
    sweep = home.plan.sweep
    space = ",".join(sweep.space)
    question = {names.METRIC: sweep.metric, names.DIRECTION: sweep.direction, names.SPACE: space}
    tags = {names.KIND: "sweep", names.SWEEP: home.name, **identity, **question}
    tracker = store.start_run(home.name, home.experiment, tags, run_id=run_id)
    if known is None:
        study.set_user_attr(keys.PARENT_RUN_ID, tracker.run_id)
    store.keep_view(home.experiment, sweep_view(tracker.run_id, tags, list(sweep.space)))
    tracker.before_write = keep_place
    sweep_record = SweepRecord(home.plan, study, store, tracker, home.directory, home.command)
    sweep_record.open()
    try:
        yield sweep_record
    except LostLockError:
        raise  # another process coordinates the sweep now, and it writes the parent run
    except StorageError:
        tracker.before_write = lambda: None  # it would wait for the same database
        tracker.finish("FAILED")  # the leaderboard cannot be written without the database
        raise
    except BaseException:
        with suppress(LostLockError):
            sweep_record.close("FAILED")
        raise
    sweep_record.close(sweep_record.status)


def _result(home: SweepContext, study: optuna.Study, outcome: Outcome, exit_code: int) -> SweepResult:
    rows = read_rows(study, home.runs)
    return SweepResult(
        name=home.name,
        config=home.plan.sweep,
        outcome=outcome,
        exit_code=exit_code if outcome == "interrupted" else 0,
        rows=rows,
        best=best_row(rows, home.plan.sweep.direction),
        test_metrics=study.user_attrs.get(keys.TEST, {}).get("metrics"),
        test_readings=describe_readings(home, study),
        parent_run_id=study.user_attrs.get(keys.PARENT_RUN_ID),
        verdict=judge_study(study, rows, home.plan.sweep),
        findings=[Finding(**values) for values in study.user_attrs.get(keys.AUDIT, [])],
    )
