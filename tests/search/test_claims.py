"""Who may work on a trial: two connections to one database, as two machines have them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from harness.config.sweep import SweepConfig
from harness.search.database.optuna_tables import TrialHead
from harness.search.database.storage import open_storage, storage_url
from harness.search.ownership import lease as lease_module
from harness.search.ownership.claims import Claim, Claims
from harness.search.ownership.lease import Lease
from harness.search.ownership.process_id import ProcessId, start_time_of
from harness.search.study import keys
from harness.search.study.trials import create_study, find_study
from tests.search.helpers.calls import is_alive, wait_for

SWEEP = SweepConfig.model_validate({"space": {"seed": {"type": "int", "low": 0, "high": 9}}})
LEASE_S = 1.0  # the shortest that Optuna's clock, of seconds, can tell


@pytest.fixture
def connect(tmp_path: Path, empty_databases: list[Path]) -> Callable[[], Claims]:
    """Return a view of one study over a connection of its own."""
    shutil.copy(empty_databases[0], tmp_path)
    create_study(open_storage(storage_url(str(tmp_path))), "mine", SWEEP)

    def open_again() -> Claims:
        storage = open_storage(storage_url(str(tmp_path)), LEASE_S)
        study = find_study(storage, "mine")
        assert study is not None
        return Claims(study, storage)

    return open_again


@pytest.fixture
def ours(connect: Callable[[], Claims]) -> Claims:
    return connect()


@pytest.fixture
def theirs(connect: Callable[[], Claims]) -> Claims:
    return connect()


def taken(claims: Claims, num_trials: int = 3) -> Claim:
    claim = claims.take(num_trials)
    assert claim is not None
    return claim


def set_owner(claims: Claims, claim: Claim, **changes: object) -> None:
    """Pretend that another process has the trial."""
    owner = replace(ProcessId.current(trains=True), **changes)  # type: ignore[arg-type]
    claims._storage.set_trial_user_attr(claim.trial_id, keys.OWNER, owner.to_json())


def move_clock(tmp_path: Path, change: str) -> None:
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database, database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, ?)", (change,))


def test_a_budget_is_shared_out_once(ours: Claims, theirs: Claims) -> None:
    assert [taken(claims).number for claims in (ours, theirs, ours)] == [0, 1, 2]
    assert ours.take(3) is theirs.take(3) is None
    assert theirs.take(4) == Claim(3, 4, attempt=1)


def test_what_was_let_go_or_enqueued_comes_before_what_is_new(ours: Claims, theirs: Claims) -> None:
    first = taken(ours)
    ours._study.enqueue_trial({"seed": 3})
    ours.release(first)

    assert taken(theirs) == Claim(0, first.trial_id, attempt=2)
    enqueued = taken(theirs)
    assert enqueued.number == 1
    assert theirs._storage.get_trial(enqueued.trial_id).state == TrialState.RUNNING
    assert taken(theirs).number == 2


def test_a_trial_that_was_created_by_a_process_that_died_at_once_is_not_lost(ours: Claims) -> None:
    ours._study.ask()
    assert taken(ours, 1).attempt == 1
    assert ours.take(1) is None


def test_only_the_newest_claim_can_be_let_go(ours: Claims, theirs: Claims) -> None:
    old = taken(ours)
    ours.release(old)
    new = taken(theirs)
    ours.release(old)

    assert ours.take(1) is None
    theirs.release(new)
    assert taken(ours, 1).attempt == 3


def test_whoever_takes_a_trial_that_is_to_fail_ends_it(ours: Claims, theirs: Claims) -> None:
    """Another machine may see it free before the one that has stopped it does."""
    claim = taken(ours)
    ours.condemn(claim, "too long")
    with lease_of(ours, claim, threading.Event()) as lease:
        lease.let_go()
    found = theirs.take(1)
    assert found == Claim(0, claim.trial_id, attempt=2, to_fail="too long")
    assert not ours.fail(claim, {"reason": "mine"})  # it is no longer ours
    assert theirs.fail(found, {"reason": "too long"})
    trial = ours._storage.get_trial(claim.trial_id)
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "too long")
    ours.condemn(claim, "too late")
    assert not theirs.fail(found, {})


@pytest.mark.parametrize("change", [{"start_time": "before"}, {"pid": 2**22 + 1}])
def test_a_dead_process_of_this_machine_loses_its_trial_at_once(
    ours: Claims, theirs: Claims, change: dict[str, object]
) -> None:
    set_owner(ours, taken(ours), **change)
    assert taken(theirs, 1).attempt == 2


def test_whose_process_died_is_left_to_who_counts_its_deaths(ours: Claims) -> None:
    claim = taken(ours)
    set_owner(ours, claim, start_time="before")

    assert ours.take(1, unsettled={claim.number}) is None
    assert taken(ours, 1).attempt == 2


def test_a_machine_with_our_name_that_was_started_at_another_time_is_another_one(
    ours: Claims, theirs: Claims
) -> None:
    """Cloned machines share all but that; this one before a restart is told apart from us by it too."""
    host, number, boot = ProcessId.current().host.split("/")
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    clone = f"{host}/{number}/{boot[::-1]}"
    claim = taken(ours)
    set_owner(ours, claim, host=clone, pid=2**22 + 1)

    assert theirs.take(1) is None  # nobody here has that number, which says nothing of a process there
    wait_for(lambda: theirs.take(1) == replace(claim, attempt=2))


def test_a_silent_process_elsewhere_loses_its_trial_after_the_lease(ours: Claims, theirs: Claims) -> None:
    claim = taken(ours)
    set_owner(ours, claim, host="elsewhere")
    assert theirs.take(1) is None

    wait_for(lambda: theirs.take(1) == replace(claim, attempt=2))


def test_a_moved_clock_costs_nobody_a_trial_who_still_beats(
    ours: Claims, theirs: Claims, tmp_path: Path
) -> None:
    claim, now = taken(ours), 0.0
    set_owner(ours, claim, host="elsewhere")
    theirs._now = lambda: now
    move_clock(tmp_path, "-1 day")

    assert theirs.stale() == {claim.trial_id}
    assert theirs.take(1) is None  # not before we have listened
    move_clock(tmp_path, "+1 year")  # it beats, and by the clock's new time that is long in coming
    now += LEASE_S
    assert theirs.take(1) is None
    move_clock(tmp_path, "-2 years")
    assert theirs.take(1) is None  # another silence, as far as we know
    now += LEASE_S
    assert theirs.take(1) == replace(claim, attempt=2)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("trains", [True, False])
def test_a_silent_process_of_this_machine_is_ended_if_it_trains(
    ours: Claims, theirs: Claims, sleeper: subprocess.Popen[bytes], trains: bool
) -> None:
    """Not so the coordinator that was about to start the trial: others hang on it."""
    set_owner(ours, taken(ours), pid=sleeper.pid, start_time=start_time_of(sleeper.pid), trains=trains)
    wait_for(lambda: theirs.take(1) is not None)

    if trains:
        wait_for(lambda: not is_alive(sleeper.pid))
    assert is_alive(sleeper.pid) is not trains


def test_an_owner_is_recognised_after_a_journey_through_the_database() -> None:
    owner = ProcessId.from_json(ProcessId.current(trains=True).to_json())
    assert owner == ProcessId.current(trains=True)
    assert owner.process() is not None
    assert replace(owner, host="elsewhere").process() is None


def test_creating_a_trial_is_repeated_without_making_two(
    ours: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost after the database has done it, and before it could say so."""
    create, calls = ours._storage.create_taken_trial, []

    def lose_answer(study_id: int, attrs: Mapping[str, object]) -> TrialHead:
        calls.append(create(study_id, attrs))
        raise StorageInternalError from OperationalError("INSERT", {}, Exception("connection lost"))

    monkeypatch.setattr(ours._storage, "create_taken_trial", lose_answer)

    assert taken(ours, 1) == Claim(0, 1, attempt=2)
    assert ours.take(1) is None  # it is known to be taken now
    assert len(calls) == len(ours._study.get_trials()) == 1


# ── leases ────────────────────────────────────────────────────────────────────────────────────────


def lease_of(claims: Claims, claim: Claim, left: threading.Event) -> Lease:
    return Lease(claims._storage, claim.trial_id, claim.attempt, LEASE_S / 6, leave=left.set)


def test_a_lease_beats_and_hears_that_it_was_lost(ours: Claims, theirs: Claims, tmp_path: Path) -> None:
    claim, left = taken(ours), threading.Event()
    with lease_of(ours, claim, left) as lease:
        move_clock(tmp_path, "-1 day")
        wait_for(lambda: theirs.stale() == set())
        assert lease.is_held()
        assert not left.is_set()
        theirs._storage.set_trial_user_attr(claim.trial_id, keys.ATTEMPT, 2)

        assert left.wait(60)
        assert not lease.is_held()


def test_a_lease_that_is_let_go_can_be_taken_at_once(ours: Claims, theirs: Claims) -> None:
    claim = taken(ours)
    with lease_of(ours, claim, threading.Event()) as lease:
        assert theirs.take(1) is None
        lease.let_go()

    assert taken(theirs, 1).attempt == 2


def test_who_has_slept_looks_before_writing(
    ours: Claims, theirs: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, left = 1000.0, threading.Event()
    monkeypatch.setattr(lease_module, "_clock", lambda: now)
    claim = taken(ours)
    lease = lease_of(ours, claim, left)
    theirs._storage.set_trial_user_attr(claim.trial_id, keys.ATTEMPT, 2)

    now += LEASE_S / 3
    lease.check_after_sleep()
    assert not left.is_set()  # nobody can have taken it so soon; the question would cost a query a batch
    now += LEASE_S
    lease.check_after_sleep()
    assert left.is_set()


@pytest.mark.parametrize(("is_rank", "expected"), [(False, 0), (True, 1)])
def test_who_leaves_for_good_takes_ranks_along(
    monkeypatch: pytest.MonkeyPatch, is_rank: bool, expected: int
) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    if is_rank:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    Lease(None, 0, 1, 1.0)._leave()  # type: ignore[arg-type]
    assert left == [expected]
    assert (ProcessId.current(trains=True).pid == os.getpid()) is not is_rank
    assert ProcessId.current().pid == os.getpid()
