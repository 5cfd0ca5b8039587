"""Sweeps on a real PostgreSQL that is killed and restarted, and whose clients are."""

from __future__ import annotations

import random

import pytest

from experiments.scale.postgres import Server
from tests.search.calls import calls_of, check_promises, wait_for
from tests.search.conftest import SmallSweep
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
