"""Keeps the slots full until the budget has ended, the time is up, or somebody asks to stop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import TrialState

from harness.config.sweep import SweepConfig
from harness.errors import SweepError
from harness.search import study as studies
from harness.search.executors import Executor, Placement
from harness.search.signals import StopSignals
from harness.search.stopping import reason_to_stop
from harness.search.study import TrialRow, read_rows

POLL_S = 2.0  # how often the database is read while trials run; each look costs 60 ms of a core

Outcome = Literal["complete", "interrupted", "out_of_time"]


@dataclass
class Scheduler:
    """The coordinator's loop. It decides from the database alone, so that any call can take over any sweep.

    Args:
        write_spec: (number, trial_id, slot) -> path of the spec that an executor can place.
        abandon: called with a trial whose process is gone for good, and what its run's status is.
        deadline: on the clock of `time.monotonic`; None = no limit.
    """

    sweep: SweepConfig
    study: optuna.Study
    executor: Executor
    num_slots: int
    write_spec: Callable[[int, int, int], Path]
    abandon: Callable[[TrialRow, Literal["FAILED", "KILLED"]], None]
    deadline: float | None = None
    _placed: dict[int, tuple[Placement, int]] = field(default_factory=dict)  # number -> (process, slot)
    _resumable: list[int] = field(default_factory=list)
    _failures: list[TrialRow] = field(default_factory=list)  # in a row
    _stopping: Outcome | Literal["failing"] | None = None

    def run(self, signals: StopSignals, on_tick: Callable[[list[TrialRow]], None]) -> Outcome:
        """Return why there is nothing left to wait for.

        Raises:
            SweepError: trials keep failing.
        """
        self._resumable = [row.number for row in read_rows(self.study) if row.state == "running"]
        while True:
            if signals.count > 1:
                self._kill()
            self._settle_ended()
            rows = read_rows(self.study)
            self._stop_if_asked(signals)
            if self._stopping is None and reason_to_stop(rows, self.sweep) is not None:
                self._stopping = "complete"  # running trials may end
            if self._stopping is None:
                self._fill(rows)
            on_tick(rows)
            if not self._placed:
                break
            self.executor.wait([placement for placement, _ in self._placed.values()], POLL_S)
        on_tick(read_rows(self.study))
        if self._stopping == "failing":
            raise SweepError(self._failing_message())
        return self._stopping or "complete"

    def _fill(self, rows: list[TrialRow]) -> None:
        ended = sum(row.has_ended for row in rows)
        used = {slot for _, slot in self._placed.values()}
        for slot in range(self.num_slots):
            if slot in used or ended + len(self._placed) >= self.sweep.num_trials:
                continue
            number, trial_id = self._next_trial(rows)
            placement = self.executor.place(self.write_spec(number, trial_id, slot))
            self._placed[number] = (placement, slot)

    def _next_trial(self, rows: list[TrialRow]) -> tuple[int, int]:
        """Return an interrupted trial if there is one; only then a new one."""
        if self._resumable:
            number = self._resumable.pop(0)
            return number, rows[number].trial_id
        trial = self.study.ask()
        return trial.number, trial._trial_id

    def _settle_ended(self) -> None:
        """Take the processes that have ended out of their slots, and see what became of their trials."""
        placed = self._placed.items()
        ended = [number for number, (placement, _) in placed if placement.exit_code() is not None]
        rows = read_rows(self.study) if ended else []
        for number in ended:
            placement, _ = self._placed.pop(number)
            row = rows[number]
            if row.has_ended:
                self._count_failures(row)
            elif self._stopping is None:
                self._settle_death(row, placement.exit_code())

    def _settle_death(self, row: TrialRow, exit_code: int | None) -> None:
        """Start a trial again whose process died without a word (killed, out of memory), a few times."""
        deaths = row.deaths + 1
        trial = optuna.trial.Trial(self.study, row.trial_id)
        trial.set_user_attr(studies.DEATHS, deaths)
        if deaths <= self.sweep.max_retries:
            self._resumable.insert(0, row.number)
            return
        trial.set_user_attr(studies.REASON, f"its process died {deaths} times ({_describe(exit_code)})")
        self.study.tell(row.number, state=TrialState.FAIL)
        self.abandon(row, "FAILED")
        self._count_failures(read_rows(self.study)[row.number])

    def _count_failures(self, row: TrialRow) -> None:
        self._failures = [*self._failures, row] if row.state == "failed" else []
        if len(self._failures) >= self.sweep.max_consecutive_failures and self._stopping is None:
            self._stopping = "failing"  # running trials may end

    def _failing_message(self) -> str:
        reasons = Counter(row.reason or "no reason recorded" for row in self._failures)
        reason, _ = reasons.most_common(1)[0]
        last = self._failures[-1].number
        return (
            f"{len(self._failures)} trials failed in a row (see trial-{last:04d}/trial.log): {reason}; "
            "mend the cause and repeat the command"
        )

    def _stop_if_asked(self, signals: StopSignals) -> None:
        if self._stopping in ("interrupted", "out_of_time"):
            return
        if signals.count:
            self._stopping = "interrupted"
        elif self.deadline is not None and time.monotonic() > self.deadline and self._stopping is None:
            self._stopping = "out_of_time"
        else:
            return
        for placement, _ in self._placed.values():
            placement.stop()

    def _kill(self) -> None:
        """End every process first: a stopped one might hold the database that is read next."""
        self._stopping = "interrupted"
        for placement, _ in self._placed.values():
            placement.kill()
        killed = [row for row in read_rows(self.study) if row.number in self._placed]
        self._placed.clear()
        for row in killed:
            if not row.has_ended:
                self.abandon(row, "KILLED")


def _describe(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    return f"signal {-exit_code}" + (", perhaps out of memory" if exit_code == -9 else "")
