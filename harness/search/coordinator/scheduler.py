"""The loop of a coordinator (`harness sweep`) or worker (`harness worker`): starts a trial in each free slot.

`sweep.py` and `worker.py` build a scheduler and run it until no further trial is needed, the time is up, the
disk is nearly full, or somebody asks to stop. Read next `ownership/claims.py`, which decides which process
may work on which trial, and `executors/base.py`, the interface through which a trial's process is started.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import optuna

from harness.config.sweep import SweepConfig
from harness.data import resolve_auto
from harness.errors import SweepError
from harness.search.coordinator.checkpoint_cleanup import CheckpointCleanup
from harness.search.coordinator.completion import reason_to_stop, search_has_ended
from harness.search.coordinator.compute import known_compute
from harness.search.coordinator.slots import Slots
from harness.search.coordinator.stop import StopRequest
from harness.search.executors.base import Executor, Placement
from harness.search.ownership.claims import Claim, Claims
from harness.search.study import keys
from harness.search.study.locate import SweepContext
from harness.search.study.trials import TrialRow, read_rows, storage_of
from harness.search.trial.exit_codes import EXIT_STOPPED, EXIT_UNAVAILABLE
from harness.search.trial.replicates import add_replicates, missing_replicates
from harness.search.trial.spec import TrialSpec
from harness.signals import StopSignals

if TYPE_CHECKING:
    from harness.tracking.store import RunStore

START_S = 300.0  # for a trial's process to its first heartbeat; imports from a cold disk are slow
POLL_S = 2.0  # how often the database is read while trials run; each look costs 60 ms of a core

Outcome = Literal["complete", "interrupted", "out_of_time", "out_of_space"]


@dataclass
class Placed:
    """A trial in one of our slots."""

    claim: Claim
    placement: Placement
    slot: int
    started: float  # on the clock of `time.monotonic`, as all here
    asked_to_stop: float | None = None
    reason: str | None = None  # set after a timeout: the trial is then failed instead of resumed later

    def stop(self) -> None:
        if self.asked_to_stop is None:
            self.asked_to_stop = time.monotonic()
            self.placement.stop()


@dataclass
class Scheduler:
    """Runs trials of a sweep on one machine. It decides from the database, so any process can continue.

    Args:
        store: the run store; the scheduler closes there the MLflow runs of trials whose process is dead.
        started: when this command began, by `time.monotonic`; `sweep.max_minutes` counts from then.
        keep_place: makes sure that we still hold the coordinator lock; raises LostLockError if not.
    """

    home: SweepContext
    study: optuna.Study
    store: RunStore
    executor: Executor
    slots: Slots
    started: float
    keep_place: Callable[[], None] = lambda: None
    _placed: dict[int, Placed] = field(default_factory=dict)  # by number
    _failures: list[TrialRow] = field(default_factory=list)  # the latest trials, while all failed
    _unbegun: set[int] = field(default_factory=set)  # numbers of trials that send no heartbeats yet
    _unavailable: list[int] = field(default_factory=list)  # trials without a database or space, in a row
    _stopping: Outcome | None = None
    _is_answered: bool = False  # by `sweep.target` or `patience_trials`, see completion.py
    _fault: str | None = None  # why no further trial is started; running ones may end

    def __post_init__(self) -> None:
        self.claims = Claims(self.study, storage_of(self.study))
        self._cleanup = CheckpointCleanup.of(self.home, self.store)
        self._stop_request = StopRequest(self.study)

    @property
    def sweep(self) -> SweepConfig:
        return self.home.plan.sweep

    def run(self, signals: StopSignals, on_tick: Callable[[list[TrialRow]], None]) -> Outcome:
        """Keep the slots full until the sweep ends or has to stop; return why it ended.

        Args:
            signals: counts Ctrl-C and SIGTERM; the second one kills the trials.
            on_tick: called with the trials after each look at the database.

        Raises:
            SweepError: trials keep failing, or keep ending for want of a database, disk space or a process.
            StorageError: the database does not answer.
            LostLockError: another process coordinates the sweep now; our trials were asked to stop.
        """
        try:
            while True:
                if signals.count > 1:
                    self._kill_all()
                if not signals.count:
                    self.keep_place()  # if we were asked to stop, losing the lock does not matter
                # Before the rows are read and trials are claimed, so that a freed slot is used at once.
                self._settle_ended()
                rows = read_rows(self.study)
                # A trial's process makes itself the owner when it enters its lease; until then, we own it.
                self._unbegun = {row.number for row in rows if row.owner == self.claims.me}
                self._stop_if_asked(signals, rows)
                self._end_overdue()
                is_ending = self._stopping is not None or self._fault is not None
                if (
                    not is_ending
                    and search_has_ended(rows, self.sweep)
                    and missing_replicates(rows, self.sweep)
                ):
                    add_replicates(self.study, self.sweep)
                    rows = read_rows(self.study)
                for slot, claim in () if is_ending else self._claims_for_free_slots(rows):
                    placement = self.executor.place(self._write_spec(claim, slot))
                    self._placed[claim.number] = Placed(claim, placement, slot, time.monotonic())
                on_tick(rows)
                if self._placed:
                    self.executor.wait([placed.placement for placed in self._placed.values()], POLL_S)
                elif not is_ending and self.claims.has_more(*self._still_wanted(rows)):
                    time.sleep(POLL_S)  # other processes run the last trials, and may leave some
                else:
                    break
        except BaseException:
            self._leave()
            raise
        if self._fault is not None:
            raise SweepError(f"{self._fault}; mend the cause and repeat the command")
        return self._stopping or "complete"

    def _still_wanted(self, rows: Sequence[TrialRow]) -> tuple[int, set[int] | None]:
        """Return how many trials there may be, and which ones alone may be claimed (None: any)."""
        replicates = {row.number for row in rows if row.replicate_of is not None}
        if self._is_answered:  # by a rule: the search neither begins nor resumes a trial
            return 0, replicates
        return self.sweep.num_trials + len(replicates), None

    def _claims_for_free_slots(self, rows: Sequence[TrialRow]) -> Iterator[tuple[int, Claim]]:
        """Claim a trial for each free slot, if there is one; the caller starts it before the next claim."""
        limit, among = self._still_wanted(rows)
        used = {placed.slot for placed in self._placed.values()}
        for slot in range(self.slots.count):
            if slot in used:
                continue
            # The process of a trial in our slots may have just died. Its death is not counted yet, so do not
            # claim that trial now.
            claim = self.claims.take(limit, self._placed, among)
            if claim is None:
                return
            if claim.to_fail is not None:  # it stopped after a timeout, and its coordinator died first
                self._fail(read_rows(self.study)[claim.number], claim, claim.to_fail)
                continue
            yield slot, claim

    def _write_spec(self, claim: Claim, slot: int) -> Path:
        """Write the spec of a trial to a file, from which an executor starts the trial's process."""
        home, together = self.home, self.sweep.devices_per_trial
        spec = TrialSpec(
            sweep_name=home.name,
            storage=home.storage,
            number=claim.number,
            trial_id=claim.trial_id,
            attempt=claim.attempt,
            plan=home.plan.to_dict(),
            data_kind=resolve_auto(home.plan.base.data).kind,
            experiment=home.experiment,
            parent_run_id=self.study.user_attrs[keys.PARENT_RUN_ID],
            threads=max(1, self.slots.threads // together),
            device_indices=self.slots.device_indices(slot, together),
            compute=known_compute(self.study),
            command=home.command,
        )
        # One file per attempt: a job that starts late on a cluster must not read the next attempt's number.
        path = home.trial_directory(claim.number) / f"spec-{claim.attempt}.json"
        spec.save(path)
        return path

    def _close_run(self, row: TrialRow, status: Literal["FAILED", "KILLED"]) -> None:
        """Close the MLflow run of a trial whose process is dead."""
        if row.run_id is not None:
            self.store.close_run(row.run_id, status)

    # ── trials whose process has ended ────────────────────────────────────────────────────────────

    def _settle_ended(self) -> None:
        """Free the slots of processes that have ended, and record how each trial ended."""
        ended = [placed for placed in self._placed.values() if placed.placement.exit_code() is not None]
        rows = read_rows(self.study) if ended else []
        for placed in ended:
            del self._placed[placed.claim.number]
            row = rows[placed.claim.number]
            if row.has_ended:
                self._unavailable.clear()
                self._count_failures(row)
            elif row.attempt == placed.claim.attempt:  # else another process has claimed the trial since
                self._settle_unfinished(row, placed)

    def _settle_unfinished(self, row: TrialRow, placed: Placed) -> None:
        exit_code = placed.placement.exit_code()
        if placed.reason is not None:
            self._fail(row, placed.claim, placed.reason)
        elif exit_code == EXIT_STOPPED or placed.asked_to_stop is not None:
            self.claims.release(placed.claim)
        elif exit_code == EXIT_UNAVAILABLE:
            self._settle_unavailable(placed.claim)
        else:
            self._settle_death(row, placed.claim, exit_code)

    def _settle_death(self, row: TrialRow, claim: Claim, exit_code: int | None) -> None:
        """Count the death of a trial's process; release the trial, or fail it after `max_retries` deaths."""
        deaths = row.deaths + 1
        storage_of(self.study).set_trial_user_attr(row.trial_id, keys.DEATHS, deaths)
        if deaths <= self.sweep.max_retries:
            self.claims.release(claim)
        else:
            self._fail(row, claim, f"its process died {deaths} times ({_describe(exit_code)})")

    def _settle_unavailable(self, claim: Claim) -> None:
        """Release a trial that ended for want of a database, disk space or a process.

        After more than `max_retries` such trials in a row, no further trial is started.
        """
        self.claims.release(claim)
        self._unavailable.append(claim.number)
        if (times := len(self._unavailable)) > self.sweep.max_retries:
            self._fault = (
                f"{times} times in a row a trial could not go on for want of a database, space or a process "
                f"(see trial-{claim.number:04d}/trial.log)"
            )

    def _fail(self, row: TrialRow, claim: Claim, reason: str) -> None:
        if not self.claims.holds(claim):
            return
        # The run first: if we die in between, the trial has not ended, and another process will do both.
        self._close_run(row, "FAILED")
        self.claims.fail(claim, {keys.REASON: reason})
        self._count_failures(read_rows(self.study)[row.number])

    def _count_failures(self, row: TrialRow) -> None:
        self._failures = [*self._failures, row] if row.state == "failed" else []
        if len(self._failures) >= self.sweep.max_consecutive_failures:
            self._fault = self._failing_message()

    def _failing_message(self) -> str:
        reasons = Counter(row.reason or "no reason recorded" for row in self._failures)
        reason, _ = reasons.most_common(1)[0]
        last = self._failures[-1].number
        return f"{len(self._failures)} trials failed in a row (see trial-{last:04d}/trial.log): {reason}"

    # ── trials that are to end ────────────────────────────────────────────────────────────────────

    def _stop_if_asked(self, signals: StopSignals, rows: list[TrialRow]) -> None:
        if self._stopping is not None:
            return
        max_minutes = self.sweep.max_minutes
        if signals.count or self._stop_request.is_new():
            self._stopping = "interrupted"
        elif self._cleanup.tick(rows) is not None:
            self._stopping = "out_of_space"
        elif max_minutes is not None and time.monotonic() > self.started + 60 * max_minutes:
            self._stopping = "out_of_time"
        else:
            if reason_to_stop(rows, self.sweep) is not None:
                self._is_answered = True  # no new trials of the search; running ones may end
            return
        for placed in self._placed.values():
            placed.stop()

    def _end_overdue(self) -> None:
        """Ask trials beyond their timeout to stop; kill those that do not stop, or send no heartbeats."""
        abandoned = self.claims.abandoned() if self._placed else set()
        now, timeout_minutes = time.monotonic(), self.sweep.trial_timeout_minutes
        for placed in self._placed.values():
            if placed.placement.is_pending:
                # It waits in a cluster's queue, perhaps for days. Only we send heartbeats for it; its timeout
                # has not begun.
                placed.started = now
                self.claims.renew(placed.claim)
            elif placed.claim.number in self._unbegun and now - placed.started < START_S:
                self.claims.renew(placed.claim)
            elif placed.claim.trial_id in abandoned:
                placed.placement.kill()
            elif placed.asked_to_stop is not None:
                if now - placed.asked_to_stop > self.sweep.grace_seconds:
                    placed.placement.kill()
            elif timeout_minutes is not None and now - placed.started > 60 * timeout_minutes:
                # Recorded before the trial is asked to stop: a stopped trial is free, and would be resumed.
                placed.reason = f"longer than sweep.trial_timeout_minutes={timeout_minutes:g}"
                self.claims.condemn(placed.claim, placed.reason)
                placed.stop()

    def _leave(self) -> None:
        """Stop our trials before an error ends this process; kill those left after the grace period."""
        until = time.monotonic() + self.sweep.grace_seconds
        for placed in self._placed.values():
            placed.stop()
        while time.monotonic() < until:
            left = [p.placement for p in self._placed.values() if p.placement.exit_code() is None]
            if not left:
                return
            self.executor.wait(left, POLL_S)
        for placed in self._placed.values():
            placed.placement.kill()

    def _kill_all(self) -> None:
        """Kill all our trials at once and release them, after a second signal."""
        self._stopping = "interrupted"
        # All processes first: a suspended one may hold a lock of the database that is read next.
        for placed in self._placed.values():
            placed.placement.kill()
        rows = read_rows(self.study) if self._placed else []
        for placed in self._placed.values():
            row = rows[placed.claim.number]
            if not row.has_ended:
                self.claims.release(placed.claim)
                self._close_run(row, "KILLED")
        self._placed.clear()


def _describe(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    return f"signal {-exit_code}" + (", perhaps out of memory" if exit_code == -9 else "")
