"""Sweeps that are killed at random moments, again and again, and end as if nothing had happened.

A moment is drawn as a number of events to wait for (a start or an epoch of some trial) and a short time on
top, so that a slow machine is killed in all phases too, and not only while it starts.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from harness.search.study.trials import TrialRow, find_study, read_rows, searched
from tests.search.conftest import SmallSweep
from tests.search.helpers.calls import Call, Calls, calls_of, check_promises, kill, wait_for
from tests.search.helpers.real_training import run_real_trial

PATIENT = ("sweep.max_retries=1000", "sweep.slots=2")  # a trial that is killed fifty times has not failed
WHAT = ("trial", "trial", "coordinator", "everything")


@dataclass
class Killer:
    """Kills what works on a sweep, and looks after each time whether anything that had ended was touched."""

    sweep: SmallSweep
    calls: Calls
    random: random.Random
    overrides: tuple[str, ...] = ()
    num_trials: int = 4
    kills: list[str] = field(default_factory=list)
    _deck: list[str] = field(default_factory=list)
    _ended: dict[int, tuple[TrialRow, list[str]]] = field(default_factory=dict)

    def strike(self, times: int) -> None:
        """Kill so many times, repeating the command as often as that ends it, or as it ends by itself."""
        call = self._start()
        while len(self.kills) < times:
            self._wait_a_moment(call)
            if call.exit_code is None:
                self._kill(call, self._what())
            elif call.exit_code == 0:
                self.num_trials += 2  # it was faster: more is wanted of it
            else:
                assert call.exit_code == -9, call.output
            self._check_nothing_ran_again()
            if call.exit_code is not None:
                call = self._start()
        assert call.wait() == 0, call.output

    def _start(self) -> Call:
        return self.calls.start(*PATIENT, *self.overrides, f"sweep.num_trials={self.num_trials}")

    def _wait_a_moment(self, call: Call) -> None:
        wanted = self._num_events() + self.random.randint(0, 4)
        wait_for(lambda: call.exit_code is not None or self._num_events() >= wanted)
        time.sleep(self.random.uniform(0, 0.4))

    def _what(self) -> str:
        """Draw what to kill; each of WHAT comes once before any comes again."""
        if not self._deck:
            self._deck = self.random.sample(WHAT, len(WHAT))
        return self._deck.pop()

    def _num_events(self) -> int:
        return sum(len(path.read_text().splitlines()) for path in self._accounts())

    def _accounts(self) -> list[Path]:
        return list(self.sweep.trial_folder(0).parent.glob("trial-*/account.txt"))

    def _kill(self, call: Call, what: str) -> None:
        trials = call.trials()
        if what == "coordinator" or not trials:
            call.kill()  # its trials find out by themselves, while the next call has begun
        elif what == "trial":
            kill(self.random.choice(trials))
        else:
            call.kill_all()
        self.kills.append(what)

    def _check_nothing_ran_again(self) -> None:
        study = find_study(self.sweep.storage(), self.sweep.name)
        rows = [] if study is None else read_rows(study)
        assert len(searched(rows)) <= self.num_trials
        for number, before in self._ended.items():
            assert before == (rows[number], self.sweep.account(number))
        self._ended |= {row.number: (row, self.sweep.account(row.number)) for row in rows if row.has_ended}


@pytest.mark.parametrize(
    ("seed", "num_kills", "num_trials"),
    [(0, 5, 2), *(pytest.param(seed, 10, 4, marks=pytest.mark.slow) for seed in range(10))],
)
def test_any_kill_is_survived(small_sweep: SmallSweep, seed: int, num_kills: int, num_trials: int) -> None:
    small_sweep.behave(pace=0.1)
    replicate = ("sweep.replicate.top=2", "sweep.replicate.seeds=2")  # killed like all trials
    with calls_of(small_sweep) as calls:
        killer = Killer(small_sweep, calls, random.Random(seed), replicate, num_trials)
        killer.strike(num_kills)

    assert len(killer.kills) == num_kills
    assert set(killer.kills) == set(WHAT)
    rows = small_sweep.rows()
    check_promises(small_sweep, len(rows))
    assert len(searched(rows)) == killer.num_trials
    for leader in sorted(searched(rows), key=lambda row: -(row.score or 0))[:2]:
        seeds = [row.seed for row in rows if row.replicate_of == leader.number]
        assert len(set(seeds)) == len(seeds) == 2
        assert leader.seed not in seeds


# ── real training ─────────────────────────────────────────────────────────────────────────────────


TINY = (
    "data.max_train_samples=300",
    "trainer.max_epochs=3",
    "trainer.select=last",  # best.ckpt, the one that an ended trial keeps, holds the last epoch's weights
    "tracking.log_model=false",
    "sweep.slots=1",
)
MOMENTS = ("start", "epoch", "report", "checkpoint", "end")


def weights(sweep: SmallSweep, number: int) -> dict[str, torch.Tensor]:
    """Return every tensor of a trial's checkpoint: weights and the optimiser's state."""
    found: dict[str, torch.Tensor] = {}

    def collect(path: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[path] = value
        elif isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, part in items:
                collect(f"{path}/{key}", part)

    content = torch.load(sweep.trial_folder(number) / "best.ckpt", weights_only=True)
    collect("", {key: content[key] for key in ("state_dict", "optimizer_states")})
    return found


def check_same_weights(sweep: SmallSweep, other: SmallSweep, num_trials: int) -> None:
    for number in range(num_trials):
        one, two = weights(sweep, number), weights(other, number)
        assert one.keys() == two.keys()
        assert len(one) > 10
        assert all(torch.equal(one[path], two[path]) for path in one)
    scores = [[(row.params, row.score, row.best_epoch) for row in each.rows()] for each in (sweep, other)]
    assert scores[0] == scores[1]


@pytest.fixture
def uninterrupted(small_sweep: SmallSweep) -> SmallSweep:
    """A place for the same sweep, left alone."""
    return small_sweep.elsewhere("uninterrupted")


@pytest.mark.slow
def test_a_trial_killed_at_any_moment_ends_with_the_same_weights(
    small_sweep: SmallSweep, uninterrupted: SmallSweep
) -> None:
    small_sweep.behave(faults={str(number): (moment, 9) for number, moment in enumerate(MOMENTS)})
    for sweep in (small_sweep, uninterrupted):
        with calls_of(sweep, run_real_trial) as calls:
            calls.finish(*TINY, f"sweep.num_trials={len(MOMENTS)}")

    assert [row.deaths for row in small_sweep.rows()] == [1] * len(MOMENTS)
    assert [row.deaths for row in uninterrupted.rows()] == [0] * len(MOMENTS)
    check_promises(small_sweep, len(MOMENTS))
    check_same_weights(small_sweep, uninterrupted, len(MOMENTS))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_real_trials_killed_at_random_end_with_the_same_weights(
    small_sweep: SmallSweep, uninterrupted: SmallSweep, seed: int
) -> None:
    with calls_of(small_sweep, run_real_trial) as calls:
        killer = Killer(small_sweep, calls, random.Random(seed), TINY, num_trials=3)
        killer.strike(6)
    with calls_of(uninterrupted, run_real_trial) as calls:
        calls.finish(*TINY, f"sweep.num_trials={killer.num_trials}")

    check_promises(small_sweep, killer.num_trials)
    check_same_weights(small_sweep, uninterrupted, killer.num_trials)
