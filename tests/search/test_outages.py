"""The database of sweeps, the run store or its server is away for a while or for good while a sweep runs."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from experiments.scale.postgres import free_port
from harness.config.schema import TrackingConfig
from harness.tracking.store import open_store
from harness.tracking.ui import server_command, server_environment
from tests.search.conftest import SmallSweep
from tests.search.helpers.calls import WAIT_S, Call, calls_of, check_promises, wait_for
from tests.services import wait_until

AWAY = "database of sweeps does not answer"


def wait_for_epoch(sweep: SmallSweep, number: int, call: Call) -> None:
    wait_for(lambda: "epoch 0" in sweep.account(number), call)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold a file as a backup or a virus scanner would."""
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def moved_away(database: Path) -> Iterator[None]:
    """Take a file away and leave in its place what cannot be opened, as a lost mount does."""
    aside = database.with_name(f"{database.name}.aside")
    database.rename(aside)
    database.mkdir()
    yield
    database.rmdir()
    aside.rename(database)


@contextmanager
def damaged(database: Path) -> Iterator[None]:
    """Let a file be something else."""
    aside = database.with_name(f"{database.name}.aside")
    database.rename(aside)
    database.write_text("not a database at all, " * 100)
    yield
    aside.rename(database)


@pytest.mark.slow
def test_a_database_that_is_locked_for_a_while_is_waited_for(small_sweep: SmallSweep) -> None:
    small_sweep.behave(pace=1.0, busy_s=0.1)
    with calls_of(small_sweep) as calls:
        call = calls.start("sweep.num_trials=2", "sweep.lease_seconds=12")
        wait_for_epoch(small_sweep, 0, call)
        with locked(small_sweep.runs / "optuna.db"):
            log = small_sweep.trial_folder(0) / "trial.log"
            wait_for(lambda: AWAY in call.output and AWAY in log.read_text(), call)
        assert call.wait() == 0, call.output

    assert [row.deaths for row in small_sweep.rows()] == [0, 0]
    check_promises(small_sweep, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("away", "message"),
    [
        (locked, "has not answered for 1 s"),
        (moved_away, "has not answered for 1 s"),
        (damaged, "optuna.db"),
    ],
)
def test_a_database_that_stays_away_ends_the_call_in_one_line(
    small_sweep: SmallSweep, away: Callable[[Path], object], message: str
) -> None:
    small_sweep.behave(pace=1.0, busy_s=0.1, patience_s=1.0)
    with calls_of(small_sweep) as calls:
        call = calls.start("sweep.num_trials=2")
        wait_for_epoch(small_sweep, 0, call)
        with away(small_sweep.runs / "optuna.db"):  # type: ignore[attr-defined]
            assert call.wait() == 2, call.output
            assert call.trials() == []  # nobody works on what nobody could see the end of
        last = call.output.splitlines()[-1]
        small_sweep.behave()
        calls.finish("sweep.num_trials=2")

    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in call.output
    check_promises(small_sweep, 2)


def spooled(sweep: SmallSweep) -> list[Path]:
    return list((sweep.runs / "spool").rglob("*.jsonl"))


def num_points(sweep: SmallSweep) -> int:
    with closing(sqlite3.connect(sweep.runs / "mlflow.db")) as database:
        query = "SELECT COUNT(*) FROM metrics WHERE key = 'val/accuracy'"
        return int(database.execute(query).fetchone()[0])


@pytest.mark.slow
def test_a_run_store_that_is_away_for_a_while_costs_nothing(small_sweep: SmallSweep) -> None:
    small_sweep.behave(pace=0.5)
    with calls_of(small_sweep) as calls:
        call = calls.start("sweep.num_trials=3")
        wait_for_epoch(small_sweep, 0, call)
        with moved_away(small_sweep.runs / "mlflow.db"):
            wait_for(lambda: small_sweep.rows()[0].has_ended, call)  # it ends all the same
            wait_for(lambda: small_sweep.rows()[-1].number == 1 and call.trials(), call)  # the next one waits
            assert spooled(small_sweep)
        assert call.wait() == 0, call.output

    assert [row.deaths for row in small_sweep.rows()] == [0, 0, 0]
    assert spooled(small_sweep) == []
    assert num_points(small_sweep) == 3 * 2
    check_promises(small_sweep, 3)


@pytest.mark.slow
def test_a_run_store_that_stays_away_ends_the_call_and_fails_no_trial(small_sweep: SmallSweep) -> None:
    small_sweep.behave(pace=0.5, patience_s=1.0)
    with calls_of(small_sweep) as calls:
        call = calls.start("sweep.num_trials=2", "sweep.max_retries=1")
        wait_for_epoch(small_sweep, 0, call)
        with moved_away(small_sweep.runs / "mlflow.db"):
            assert call.wait() == 2, call.output
            assert [row.state for row in small_sweep.rows()] == ["complete", "running"]
        calls.finish("sweep.num_trials=2")

    assert "2 times in a row a trial could not go on for want of a database" in call.output.splitlines()[-1]
    assert "Traceback" not in call.output
    assert num_points(small_sweep) == 2 * 2
    check_promises(small_sweep, 2)


# ── an MLflow server ──────────────────────────────────────────────────────────────────────────────


@dataclass
class Server:
    """An MLflow server on a sweep's run store, to be killed and started again."""

    sweep: SmallSweep
    port: int = field(default_factory=free_port)

    @contextmanager
    def running(self) -> Iterator[None]:
        store = open_store(TrackingConfig(dir=str(self.sweep.runs)))
        command = server_command(store, "127.0.0.1", self.port)
        log = self.sweep.runs.parent / "server.log"
        with log.open("ab") as output:
            environment = os.environ | server_environment(store)
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,  # it ends with whoever holds the other end
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, "the MLflow server", log, timeout_s=120)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _answers(self) -> bool:
        with suppress(requests.RequestException):
            return requests.get(f"http://127.0.0.1:{self.port}/health", timeout=1).ok
        return False

    def sweeping(self, *overrides: str) -> subprocess.Popen[str]:
        """Start a call of the sweep whose run store is this server."""
        words = [str(self.sweep.configs), *self.sweep.overrides(*overrides)]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.search.helpers.coordinator", *words],
            env=os.environ | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.port}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.mark.slow
def test_an_mlflow_server_that_is_restarted_costs_nothing(small_sweep: SmallSweep) -> None:
    small_sweep.behave(pace=0.5)
    server = Server(small_sweep)
    with server.running():
        call = server.sweeping("sweep.num_trials=3")
        wait_for(lambda: "epoch 0" in small_sweep.account(0))
    wait_for(lambda: small_sweep.rows()[0].has_ended)
    assert spooled(small_sweep)
    with server.running():
        output, _ = call.communicate(timeout=WAIT_S)

    assert call.returncode == 0, output
    assert [row.deaths for row in small_sweep.rows()] == [0, 0, 0]
    assert spooled(small_sweep) == []
    assert num_points(small_sweep) == 3 * 2
    check_promises(small_sweep, 3)


@pytest.mark.slow
def test_an_mlflow_server_that_stays_away_ends_the_call_and_fails_no_trial(small_sweep: SmallSweep) -> None:
    small_sweep.behave(pace=0.5, patience_s=1.0)
    server = Server(small_sweep)
    with server.running():
        call = server.sweeping("sweep.num_trials=2", "sweep.max_retries=1")
        wait_for(lambda: "epoch 0" in small_sweep.account(0))
    output, _ = call.communicate(timeout=WAIT_S)
    assert call.returncode == 2, output
    assert "2 times in a row a trial could not go on for want of a database" in output.splitlines()[-1]
    assert "Traceback" not in output
    with server.running():
        again = server.sweeping("sweep.num_trials=2")
        output, _ = again.communicate(timeout=WAIT_S)

    assert again.returncode == 0, output
    assert num_points(small_sweep) == 2 * 2
    check_promises(small_sweep, 2)
