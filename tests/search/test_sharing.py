"""Many processes and threads at one database at once."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest

from harness.config.sweep import SweepConfig
from harness.search.database.locks import LockedError
from harness.search.database.retrying_storage import RetryingStorage
from harness.search.database.storage import open_storage, storage_url
from harness.search.ownership.claims import Claims
from harness.search.ownership.lease import Lease
from harness.search.study import keys
from harness.search.study.trials import create_study, find_study
from tests.search.helpers.calls import CONTEXT, PRELOAD

SWEEP = SweepConfig.model_validate({"space": {"seed": {"type": "int", "low": 0, "high": 9}}})


@pytest.fixture
def url(tmp_path: Path, empty_databases: list[Path]) -> str:
    """Return the address of a database with one study in it."""
    folder = tmp_path / "shared"
    folder.mkdir()
    shutil.copy(empty_databases[0], folder)
    create_study(open_storage(storage_url(str(folder))), "mine", SWEEP)
    return storage_url(str(folder))


def test_a_lock_is_held_by_one(url: str) -> None:
    ours, theirs = open_storage(url), open_storage(url)
    with ours.exclusive("a"), theirs.exclusive("b"):
        another = theirs.exclusive("a", timeout_s=0)
        with pytest.raises(LockedError, match="another process holds the lock 'a'"):
            another.__enter__()
    with theirs.exclusive("a", timeout_s=0):
        pass


def test_many_may_open_a_database_that_nobody_has_made(tmp_path: Path) -> None:
    def open_and_create(number: int) -> RetryingStorage:
        storage = open_storage(storage_url(str(tmp_path)))
        create_study(storage, f"sweep-{number}", SWEEP)
        return storage

    with ThreadPoolExecutor(4) as pool:
        storages = list(pool.map(open_and_create, range(4)))

    assert len(storages[0].get_all_studies()) == 4
    assert sorted(path.name for path in tmp_path.glob("*.db*")) == ["optuna.db", "optuna.db.create.lock"]


def work(url: str, num_trials: int) -> int:
    """Do trials of nothing until none is left, as a coordinator and its trials do together."""
    storage = open_storage(url)
    study = find_study(storage, "mine")
    assert study is not None
    claims, done = Claims(study, storage), 0
    while (claim := claims.take(num_trials)) is not None:
        with Lease(storage, claim.trial_id, claim.attempt, interval_s=5.0):
            trial = optuna.Trial(study, claim.trial_id)
            trial.report(0.5, 1)
            study.tell(trial, float(claim.number))
        done += 1
    return done


def check_all_done(url: str, num_trials: int) -> None:
    study = find_study(open_storage(url), "mine")
    assert study is not None
    trials = study.get_trials()
    assert [trial.number for trial in trials] == list(range(num_trials))
    assert [trial.value for trial in trials] == list(range(num_trials))
    assert {trial.user_attrs[keys.ATTEMPT] for trial in trials} == {1}


def test_many_threads_share_a_budget_exactly(url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: work(url, 20), range(6)))

    assert sum(done) == 20
    check_all_done(url, 20)


def work_in_process(url: str, num_trials: int) -> None:
    raise SystemExit(0 if work(url, num_trials) else 3)


@pytest.mark.slow
def test_sixteen_processes_do_eight_hundred_trials_without_an_error(url: str) -> None:
    CONTEXT.set_forkserver_preload(PRELOAD)
    arguments = (url, 16 * 50)
    processes = [CONTEXT.Process(target=work_in_process, args=arguments) for _ in range(16)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0] * 16
    check_all_done(url, 16 * 50)
