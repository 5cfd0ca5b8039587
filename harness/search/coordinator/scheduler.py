"""Keeps the slots full until the budget has ended, the time is up, or somebody asks to stop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import optuna

from harness.config.sweep import SweepConfig
from harness.errors import SweepError
from harness.search.coordinator.completion import reason_to_stop
from harness.search.coordinator.signals import StopSignals
from harness.search.executors.base import Executor, Placement
from harness.search.ownership.claims import Claim, Claims
from harness.search.study import keys
from harness.search.study.trials import TrialRow, read_rows
from harness.search.trial.run import EXIT_AWAY, EXIT_STOPPED

START_S = 300.0  # for a trial's process to come to its work: until then, nothing is heard of it
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
    reason: str | None = None  # why it was asked; then it has failed

    def stop(self) -> None:
        if self.asked_to_stop is None:
            self.asked_to_stop = time.monotonic()
            self.placement.stop()


@dataclass
class Scheduler:
    """One machine's part in a sweep; it decides from the database alone, so any call can take over any sweep.

    Args:
        write_spec: (claim, slot) -> path of the spec that an executor can place.
        abandon: called with a trial whose process is gone for good, and what its run's status is.
        tend_disk: rows -> why nothing may go on for want of space, or None.
        deadline: on the clock of `time.monotonic`; None = no limit.
        stop_requested: whether somebody elsewhere has asked the whole sweep to stop.
        keep_place: makes sure that this place is ours still; raises LostLockError if it is not.
    """

    sweep: SweepConfig
    study: optuna.Study
    claims: Claims
    executor: Executor
    num_slots: int
    write_spec: Callable[[Claim, int], Path]
    abandon: Callable[[TrialRow, Literal["FAILED", "KILLED"]], None]
    tend_disk: Callable[[list[TrialRow]], str | None] = lambda rows: None
    deadline: float | None = None
    stop_requested: Callable[[], bool] = lambda: False
    keep_place: Callable[[], None] = lambda: None
    _placed: dict[int, Placed] = field(default_factory=dict)  # by number
    _failures: list[TrialRow] = field(default_factory=list)  # in a row
    _unbegun: set[int] = field(default_factory=set)  # numbers of trials whose process has not come so far
    _away: list[int] = field(default_factory=list)  # trials that could not go on, in a row
    _stopping: Outcome | None = None
    _is_answered: bool = False  # before the budget is spent
    _fault: str | None = None  # why no further trial makes sense; running ones may end

    def run(self, signals: StopSignals, on_tick: Callable[[list[TrialRow]], None]) -> Outcome:
        """Return why there is nothing left to wait for.

        Raises:
            SweepError: trials keep failing, or find a database away.
            StorageError: the database is away.
            LostLockError: another process has taken our place; our trials have been let go.
        """
        try:
            self._work(signals, on_tick)
        except BaseException:
            self._leave()
            raise
        if self._fault is not None:
            raise SweepError(f"{self._fault}; mend the cause and repeat the command")
        return self._stopping or "complete"

    def _work(self, signals: StopSignals, on_tick: Callable[[list[TrialRow]], None]) -> None:
        while True:
            if signals.count > 1:
                self._kill_all()
            if not signals.count:
                self.keep_place()
            self._settle_ended()
            rows = read_rows(self.study)
            self._unbegun = {row.number for row in rows if row.owner == self.claims.me}
            self._stop_if_asked(signals, rows)
            self._end_overdue()
            if not self._is_ending:
                self._fill()
            on_tick(rows)
            if not self._placed and (self._is_ending or not self.claims.has_more(self.sweep.num_trials)):
                return
            self._wait()

    @property
    def _is_ending(self) -> bool:
        return self._stopping is not None or self._is_answered or self._fault is not None

    def _wait(self) -> None:
        if self._placed:
            self.executor.wait([placed.placement for placed in self._placed.values()], POLL_S)
        else:
            time.sleep(POLL_S)  # others still run the last trials, and may fail to end them

    def _fill(self) -> None:
        used = {placed.slot for placed in self._placed.values()}
        for slot in range(self.num_slots):
            if slot in used:
                continue
            claim = self.claims.take(self.sweep.num_trials, unsettled=self._placed)
            if claim is None:
                return
            if claim.to_fail is not None:
                self._fail(read_rows(self.study)[claim.number], claim, claim.to_fail)
                continue
            placement = self.executor.place(self.write_spec(claim, slot))
            self._placed[claim.number] = Placed(claim, placement, slot, time.monotonic())

    # ── trials whose process has ended ────────────────────────────────────────────────────────────

    def _settle_ended(self) -> None:
        """Take the processes that have ended out of their slots, and see what became of their trials."""
        ended = [placed for placed in self._placed.values() if placed.placement.exit_code() is not None]
        rows = read_rows(self.study) if ended else []
        for placed in ended:
            del self._placed[placed.claim.number]
            row = rows[placed.claim.number]
            if row.has_ended:
                self._away.clear()
                self._count_failures(row)
            elif row.attempt == placed.claim.attempt:  # else somebody has taken it over
                self._settle_unfinished(row, placed)

    def _settle_unfinished(self, row: TrialRow, placed: Placed) -> None:
        exit_code = placed.placement.exit_code()
        if placed.reason is not None:
            self._fail(row, placed.claim, placed.reason)
        elif exit_code == EXIT_STOPPED or placed.asked_to_stop is not None:
            self.claims.release(placed.claim)
        elif exit_code == EXIT_AWAY:
            self._settle_away(placed.claim)
        else:
            self._settle_death(row, placed.claim, exit_code)

    def _settle_death(self, row: TrialRow, claim: Claim, exit_code: int | None) -> None:
        """Let a trial be started again whose process died without a word, a few times."""
        deaths = row.deaths + 1
        self.study._storage.set_trial_user_attr(row.trial_id, keys.DEATHS, deaths)
        if deaths <= self.sweep.max_retries:
            self.claims.release(claim)
        else:
            self._fail(row, claim, f"its process died {deaths} times ({_describe(exit_code)})")

    def _settle_away(self, claim: Claim) -> None:
        """Let a trial be resumed that has waited for a database in vain; after some, wait no more."""
        self.claims.release(claim)
        self._away.append(claim.number)
        if len(self._away) > self.sweep.max_retries:
            self._fault = (
                f"{len(self._away)} times in a row a trial could not go on for want of a database, space or "
                f"a process (see trial-{claim.number:04d}/trial.log)"
            )

    def _fail(self, row: TrialRow, claim: Claim, reason: str) -> None:
        if not self.claims.holds(claim):
            return
        self.abandon(row, "FAILED")  # first: nobody looks at the run of a trial that has ended
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
        if signals.count or self.stop_requested():
            self._stopping = "interrupted"
        elif self.tend_disk(rows) is not None:
            self._stopping = "out_of_space"
        elif self.deadline is not None and time.monotonic() > self.deadline:
            self._stopping = "out_of_time"
        else:
            if reason_to_stop(rows, self.sweep) is not None:
                self._is_answered = True  # running trials may end
            return
        for placed in self._placed.values():
            placed.stop()

    def _end_overdue(self) -> None:
        """Ask trials to stop that take too long; end those that do not listen, or are not heard of."""
        abandoned = self.claims.abandoned() if self._placed else set()
        now, timeout_minutes = time.monotonic(), self.sweep.trial_timeout_minutes
        for placed in self._placed.values():
            if placed.placement.is_pending:
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
                placed.reason = f"longer than sweep.trial_timeout_minutes={timeout_minutes:g}"
                self.claims.condemn(placed.claim, placed.reason)
                placed.stop()

    def _leave(self) -> None:
        """Ask our trials to stop, and see to it: without us nobody would."""
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
        """End every process first: a stopped one might hold the database that is read next."""
        self._stopping = "interrupted"
        for placed in self._placed.values():
            placed.placement.kill()
        rows = read_rows(self.study) if self._placed else []
        for placed in self._placed.values():
            row = rows[placed.claim.number]
            if not row.has_ended:
                self.claims.release(placed.claim)
                self.abandon(row, "KILLED")
        self._placed.clear()


def _describe(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    return f"signal {-exit_code}" + (", perhaps out of memory" if exit_code == -9 else "")
