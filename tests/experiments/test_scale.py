"""The simulation of many workers, with few; and the server that it starts."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from experiments.scale import report
from experiments.scale.__main__ import Database, job_of, main, plan_of
from experiments.scale.filling import fill
from experiments.scale.postgres import ABSENT, NoPostgresError, Server, find_programs
from experiments.scale.simulation import Simulated, find_mistakes, simulate
from harness.search.database.storage import RetryingStorage, open_storage
from harness.search.ownership.claims import Claims
from harness.search.study import keys
from harness.search.study.trials import create_study, find_study

NAME = "sweep"


@pytest.fixture
def sqlite(tmp_path: Path) -> Database:
    return Database("SQLite", f"sqlite:///{tmp_path}/optuna.db", workers=2, server=None)


def _simulate(
    database: Database, folder: Path, num_trials: int, kill_every_s: float | None = None, pause_s: float = 0
) -> Simulated:
    storage = open_storage(database.url)
    if find_study(storage, NAME) is None:
        create_study(storage, NAME, plan_of("random", num_trials).sweep)
    job = job_of(database, NAME, "random", num_trials, folder / "times")
    job = replace(job, reports=2, pause_s=pause_s)
    return simulate(job, database.workers, database.server, kill_every_s)


def test_workers_end_exactly_the_budget_and_time_every_step(sqlite: Database, tmp_path: Path) -> None:
    done = _simulate(sqlite, tmp_path, 20)
    assert done.mistakes == []
    assert done.num_trials == 20
    assert {step: len(seconds) for step, seconds in done.times.items()} == {
        "ask": 20, "take": 20, "begin": 20, "suggest": 20, "report": 40, "tell": 20,
    }  # fmt: skip


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_trial_ended(sqlite: Database, tmp_path: Path) -> None:
    done = _simulate(sqlite, tmp_path, 10, kill_every_s=1.0, pause_s=0.2)
    assert done.kills > 0
    assert done.mistakes == []


def test_wrong_books_are_noticed(sqlite: Database, tmp_path: Path) -> None:
    storage = open_storage(sqlite.url)
    study = create_study(storage, NAME, plan_of("random", 3).sweep)
    study.tell(study.ask(), 0.5)
    study.ask()
    mistakes = find_mistakes(storage, job_of(sqlite, NAME, "random", 3, tmp_path / "times"))
    assert mistakes == [
        "2 trials, not 3", "1 RUNNING", "1 not COMPLETE", "a trial without all of its reports",
    ]  # fmt: skip


def test_a_filled_study_goes_on_from_its_copies(sqlite: Database, tmp_path: Path) -> None:
    _simulate(sqlite, tmp_path, 3)
    storage = open_storage(sqlite.url)
    study = find_study(storage, NAME)
    assert study is not None
    fill(storage, study._study_id, 50)
    trials = study.get_trials()
    assert [trial.number for trial in trials] == list(range(50))
    assert trials[10].params == trials[1].params
    assert trials[10].intermediate_values == trials[1].intermediate_values
    assert _simulate(sqlite, tmp_path, 52).mistakes == []


@pytest.mark.slow
def test_the_whole_command_writes_a_report_of_every_simulation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--live", "2", "--paced", "2", "--killed", "1", "--tpe", "1", "--workers", "2"]
    assert main(["--databases", "sqlite", "--trials", "4", *sizes, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / report.RESULTS).read_text())
    assert [row["size"] for row in results["simulations"]] == [4, 6, 7, 8]
    assert {row["trials"] for row in results["fresh"]} == {4}
    text = (tmp_path / report.REPORT).read_text()
    assert "0.21 trials/s" in text
    assert "the books were right" in text
    assert (tmp_path / report.PLOT).stat().st_size > 0
    assert "p99 of ask" in capsys.readouterr().out


# ── PostgreSQL ────────────────────────────────────────────────────────────────────────────────────


def test_without_a_server_one_line_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoPostgresError, match="apt-get install postgresql"):
        find_programs()
    assert "\n" not in ABSENT


def test_workers_end_exactly_the_budget_on_a_server(postgres: Server, tmp_path: Path) -> None:
    done = _simulate(Database("PostgreSQL", postgres.url, 2, postgres.pid), tmp_path, 10)
    assert done.mistakes == []
    assert done.usage.server_cpu_s > 0


def _study(postgres: Server, name: str) -> tuple[RetryingStorage, int]:
    storage = open_storage(postgres.url)
    return storage, create_study(storage, name, plan_of("random", 10).sweep)._study_id


def test_a_claim_on_a_server_is_made_wholly_or_not_at_all(postgres: Server) -> None:
    storage, study_id = _study(postgres, "whole")

    def begin_and_fail() -> None:
        storage.create_taken_trial(study_id, {keys.ATTEMPT: 1})
        assert storage.get_open_trials(study_id, keys.ATTEMPT).num_trials == 1
        raise ValueError("killed, say")

    with pytest.raises(ValueError, match="killed"):
        storage.transact("whole", begin_and_fail)
    assert storage.get_open_trials(study_id, keys.ATTEMPT).num_trials == 0


def test_a_claim_is_made_anew_when_the_connection_is_lost_and_with_it_the_lock(postgres: Server) -> None:
    storage, study_id = _study(postgres, "lost")
    calls: list[int] = []

    def begin() -> int:
        calls.append(1)
        trial = storage.create_taken_trial(study_id, {keys.ATTEMPT: 1})
        if len(calls) == 1:
            _end_other_connections(postgres)
        storage.get_trial_head(trial.trial_id, keys.ATTEMPT)
        return trial.number

    assert storage.transact("lost", begin) == 0
    assert len(calls) == 2
    trials = storage.get_all_trials(study_id)
    assert [trial.state for trial in trials] == [TrialState.RUNNING]


def _end_other_connections(postgres: Server) -> None:
    engine = sa.create_engine(postgres.url)
    with engine.connect() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid()"
        connection.execute(sa.text(f"{others} AND backend_type = 'client backend'"))
    engine.dispose()


def test_claims_made_at_once_on_a_server_never_exceed_the_budget(postgres: Server) -> None:
    storage, _ = _study(postgres, "at once")
    numbers: list[int] = []

    def take_all() -> None:
        own = open_storage(postgres.url)
        study = find_study(own, "at once")
        assert study is not None
        claims = Claims(study, own)
        while (claim := claims.take(20)) is not None:
            numbers.append(claim.number)
        own.engine.dispose()

    threads = [threading.Thread(target=take_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(20))
    storage.engine.dispose()


def test_a_claim_takes_one_connection(postgres: Server) -> None:
    storage, _ = _study(postgres, "one")
    storage.engine.dispose()
    study = find_study(storage, "one")
    assert study is not None
    claims, made = Claims(study, storage), []
    storage.engine.dispose()
    sa.event.listen(storage.engine, "connect", lambda *_: made.append(1))
    assert claims.take(5) is not None
    assert claims.take(5) is not None
    assert len(made) == 1
