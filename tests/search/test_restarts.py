"""Sweeps on a real PostgreSQL that is killed and restarted, and whose clients are."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from experiments.scale.postgres import Server
from harness.config.compose import compose_sweep
from harness.search.database.locks import LockedError, LostLockError
from harness.search.ownership.claims import Claims
from harness.search.study.locate import coordinator_lock_in
from harness.search.study.trials import create_study, find_study
from tests.search.conftest import SmallSweep
from tests.search.helpers.calls import calls_of, check_promises, wait_for
from tests.search.test_kill_points import Killer

pytestmark = pytest.mark.integration


@pytest.fixture
def on_server(small_sweep: SmallSweep, postgres: Server) -> SmallSweep:
    small_sweep.database = postgres.new_database()
    return small_sweep


def test_a_server_that_is_restarted_costs_no_trial(on_server: SmallSweep, postgres: Server) -> None:
    """Once as by its administrator, then as by power cuts; each time while trials run."""
    on_server.behave(pace=0.5)
    with calls_of(on_server) as calls:
        call = calls.start("sweep.num_trials=8", "sweep.slots=2")
        for number, mode in ((0, "fast"), (3, "immediate"), (6, "immediate")):
            wait_for(lambda number=number: "epoch 0" in on_server.account(number), call)  # type: ignore[misc]
            postgres.stop(mode)
            postgres.start()
        assert call.wait() == 0, call.output

    accounts = [on_server.account(number) for number in range(8)]
    assert [len(account) for account in accounts] == [3] * 8, "a trial was begun twice"
    assert [account[1:] for account in accounts] == [["epoch 0", "epoch 1"]] * 8
    check_promises(on_server, 8)


def test_any_kill_is_survived_on_a_server_too(on_server: SmallSweep, postgres: Server) -> None:
    on_server.behave(pace=0.1)
    with calls_of(on_server) as calls:
        killer = Killer(on_server, calls, random.Random(11))
        killer.strike(5)
        postgres.stop("immediate")
        postgres.start()
        killer.strike(10)

    check_promises(on_server, killer.num_trials)


def test_a_beat_is_fresh_in_every_time_zone(on_server: SmallSweep) -> None:
    """Sessions in different zones, as an environment's PGTZ makes them, read one clock."""
    beats = on_server.storage()
    study = create_study(beats, "mine", compose_sweep(on_server.overrides(), on_server.configs).sweep)
    claim = Claims(study, beats).take(1)
    assert claim is not None
    for zone in ("Asia/Tokyo", "America/Lima"):
        on_server.database = f"{postgres_url(on_server)}?options=-c%20timezone%3D{zone}"
        there = on_server.storage()
        found = find_study(there, "mine")
        assert found is not None
        assert Claims(found, there).stale() == set()
        there.record_heartbeat(claim.trial_id)
        assert Claims(study, beats).stale() == Claims(found, there).stale() == set()


def postgres_url(sweep: SmallSweep) -> str:
    return str(sweep.database).partition("?")[0]


# ── the one coordinator's lock, which ends with its connection ────────────────────────────────────


def cut_connections(url: str) -> None:
    """End every connection to a database, as a server does that is restarted, or finds one idle."""
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_lock_that_was_lost_is_taken_again_unless_another_has_it(
    on_server: SmallSweep, postgres: Server
) -> None:
    ours, theirs = on_server.storage(), on_server.storage()
    with ours.exclusive("a", timeout_s=0) as keep:
        keep()
        cut_connections(str(on_server.database))
        keep()
        with pytest.raises(LockedError), theirs.exclusive("a", timeout_s=0):
            pass
        postgres.stop("immediate")
        postgres.start()
        with theirs.exclusive("a", timeout_s=0), pytest.raises(LostLockError, match="another process has"):
            keep()
        keep()  # they have let go
    with theirs.exclusive("a", timeout_s=0):
        pass


def test_a_server_that_is_restarted_leaves_one_coordinator_and_its_followers(
    on_server: SmallSweep, postgres: Server
) -> None:
    """Whoever comes after the restart follows the first, and so does whoever followed it before."""
    on_server.behave(pace=0.5, slow=[1])  # so that trial 1 still runs when the first is killed
    with calls_of(on_server) as calls:
        first = calls.start("sweep.num_trials=6")
        wait_for(lambda: "epoch 0" in on_server.account(0), first)
        second = calls.start("sweep.num_trials=6")
        wait_for(lambda: "following it" in second.output, second)
        postgres.stop("immediate")
        postgres.start()
        wait_until_coordinated(on_server)
        third = calls.start("sweep.num_trials=6")
        wait_for(lambda: "following it" in third.output, third)
        wait_for(lambda: "epoch 0" in on_server.account(1), first)
        on_server.behave(pace=0.5)
        first.kill()
        wait_for(lambda: "sweep small: 6 trials" in second.output + third.output)
        assert (second.wait(), third.wait()) == (0, 0), second.output + third.output

    assert [len(on_server.account(number)) for number in range(2, 6)] == [3] * 4, "a trial was begun twice"
    check_promises(on_server, 6)


def wait_until_coordinated(sweep: SmallSweep) -> None:
    """Wait until the restarted server knows of a coordinator."""

    def is_coordinated() -> bool:
        try:
            with coordinator_lock_in(sweep.storage(), sweep.name):
                return False
        except LockedError:
            return True

    wait_for(is_coordinated)


@contextmanager
def taking_the_place(sweep: SmallSweep) -> Iterator[None]:
    """Hold the coordinator's lock, taken in the moment in which a cut connection lost it."""
    while True:
        cut_connections(str(sweep.database))
        try:
            with coordinator_lock_in(sweep.storage(), sweep.name):
                yield
                return
        except LockedError:
            time.sleep(0.05)


def test_a_coordinator_whose_place_was_taken_follows_and_comes_back(on_server: SmallSweep) -> None:
    on_server.behave(slow=[0])
    with calls_of(on_server) as calls:
        call = calls.start("sweep.num_trials=2")
        wait_for(lambda: "epoch 0" in on_server.account(0), call)
        with taking_the_place(on_server):
            wait_for(lambda: "following it" in call.output, call)
            assert call.trials() == []  # the devices are another's by now
            assert on_server.rows()[0].state == "running"
            on_server.behave()
        assert call.wait() == 0, call.output

    assert on_server.account(0)[1:2] == ["epoch 0"]
    check_promises(on_server, 2)
