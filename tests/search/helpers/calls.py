"""Calls of a sweep in processes of their own, to be killed, and what must hold whatever was killed.

They are forked from the test session's fork server, which has imported everything, and so are their trials:
a call costs a second, and a hundred of them can be killed in a minute or two.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil

from harness.search.executors.local import PRELOADED, RunTrial
from tests.search.conftest import SmallSweep
from tests.search.helpers import coordinator
from tests.search.helpers.fake_training import run_trial

PRELOAD = [
    *PRELOADED,
    "tests.search.helpers.calls",
    "tests.search.helpers.fake_training",
    "harness.analysis.figures",
]
WAIT_S = 300.0  # for what takes seconds where nothing else runs

CONTEXT = multiprocessing.get_context("forkserver")


@dataclass
class Call:
    """One call of a sweep."""

    process: Any
    log: Path
    _others: set[int]  # processes that are not its trials

    @property
    def exit_code(self) -> int | None:
        code: int | None = self.process.exitcode
        return code

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    def trials(self) -> list[int]:
        """Return the processes of trials, an earlier call's that still live included."""
        server = psutil.Process(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]
        children = [child.pid for child in server.children()]
        return [pid for pid in children if pid not in self._others and is_alive(pid)]

    def kill(self) -> None:
        self.process.kill()
        self.process.join(WAIT_S)

    def kill_all(self) -> None:
        """End it with all its trials: what the loss of the machine leaves."""
        trials = self.trials()
        for pid in (self.process.pid, *trials):
            kill(pid)
        self.process.join(WAIT_S)
        wait_for(lambda: not any(map(is_alive, trials)))

    def wait(self) -> int:
        self.process.join(WAIT_S)
        assert self.exit_code is not None, f"it still runs: {self.output}"
        return self.exit_code


@dataclass
class Calls:
    """Starts calls of a sweep; a test ends them all when it leaves the context."""

    sweep: SmallSweep
    run: RunTrial = run_trial
    calls: list[Call] = field(default_factory=list)
    _pids: set[int] = field(default_factory=set)

    def start(self, *overrides: str) -> Call:
        log = self.sweep.runs.parent / f"call-{len(self.calls)}.log"
        words = [str(self.sweep.configs), *self.sweep.overrides(*overrides)]
        process = CONTEXT.Process(target=_coordinate, args=(log, words, self.run))
        process.start()
        self._pids.add(process.pid)  # type: ignore[arg-type]
        self.calls.append(Call(process, log, self._pids))
        return self.calls[-1]

    def finish(self, *overrides: str) -> Call:
        """Repeat the command, undisturbed, to its end."""
        call = self.start(*overrides)
        assert call.wait() == 0, call.output
        return call


@contextmanager
def calls_of(sweep: SmallSweep, run: RunTrial = run_trial) -> Iterator[Calls]:
    CONTEXT.set_forkserver_preload(PRELOAD)
    calls = Calls(sweep, run)
    try:
        yield calls
    finally:
        for call in calls.calls:
            if call.exit_code is None:
                call.kill_all()


def _coordinate(log: Path, words: list[str], run: RunTrial) -> None:
    os.setsid()
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    # Its trials are forked from the server that it comes from itself; its own would start for seconds.
    forkserver._forkserver.ensure_running = forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    raise SystemExit(coordinator.main(*words, run=run))


# ── processes ─────────────────────────────────────────────────────────────────────────────────────


def is_alive(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def kill(pid: int | None, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)  # type: ignore[arg-type]


def is_stopped(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return False


def wait_for(condition: Callable[[], Any], call: Call | None = None) -> None:
    """Wait until something holds; a call that ends before it does has failed."""
    until = time.monotonic() + WAIT_S
    while not condition():
        assert call is None or call.exit_code is None, call.output
        assert time.monotonic() < until, call.output if call is not None else "it never came to be"
        time.sleep(0.02)


def pid_of(sweep: SmallSweep, number: int) -> int:
    """Return the process that last began a trial."""
    starts = [line for line in sweep.account(number) if line.startswith("start")]
    return int(starts[-1].split()[1]) if starts else 0


# ── promises ──────────────────────────────────────────────────────────────────────────────────────


def check_promises(sweep: SmallSweep, num_trials: int, states: Iterable[str] = ("complete",)) -> None:
    """Check what holds at the end of a sweep, whatever was killed before."""
    rows = sweep.rows()
    assert [row.number for row in rows] == list(range(num_trials))
    assert {row.state for row in rows} <= set(states), rows
    for row in rows:
        epochs = [line for line in sweep.account(row.number) if line.startswith("epoch")]
        assert max(Counter(epochs).values(), default=1) == 1, "an epoch was trained after its checkpoint"
    check_runs(sweep, {row.run_id: str(row.number) for row in rows if row.run_id is not None})


def check_runs(sweep: SmallSweep, trials: dict[str, str]) -> None:
    """Check MLflow's side: a run per trial and the parent, all ended, with one point a metric and step."""
    with closing(sqlite3.connect(f"file:{sweep.runs}/mlflow.db?mode=ro", uri=True)) as database:
        found = dict(database.execute("SELECT run_uuid, value FROM tags WHERE key = 'harness.trial'"))
        statuses = dict(database.execute("SELECT run_uuid, status FROM runs"))
        points = "SELECT run_uuid, key, step, COUNT(*) FROM metrics GROUP BY 1, 2, 3 HAVING COUNT(*) > 1"
        assert found == trials
        assert len(statuses) == len(trials) + 1
        assert "RUNNING" not in statuses.values()
        assert database.execute(points).fetchall() == []
