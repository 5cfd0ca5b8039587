"""Slots × threads on a CPU: what is tried, what is chosen, what is remembered, and one real measurement."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.compose import SweepPlan, compose_sweep
from harness.config.schema import RunConfig
from harness.search.coordinator import measure_slots as throughput
from harness.search.coordinator.measure_slots import (
    BUDGET_S,
    MEMORY_PER_TRIAL,
    BenchmarkCase,
    Candidate,
    candidates,
    choose,
    describe,
    explore,
    heaviest_run,
    measure_together,
    measured_slots,
)
from harness.search.coordinator.slots import Measurement, Slots, find_slots
from harness.search.executors.local import LocalExecutor
from harness.search.sweep import describe_sweep
from tests.search.conftest import SmallSweep
from tests.search.helpers import fake_training

PLENTY = 1e15  # bytes


def pairs(found: list[Candidate]) -> list[tuple[int, int]]:
    return [(candidate.slots, candidate.threads) for candidate in found]


def result(slots: int, threads: int, rate: float, memory: float = 1e9) -> Measurement:
    return Measurement(slots, threads, rate, memory)


# ── what is tried ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cores", "num_trials", "memory", "expected"),
    [
        (16, 99, PLENTY, [(16, 1), (8, 2), (4, 4), (2, 8), (1, 16)]),
        (2, 99, PLENTY, [(2, 1), (1, 2)]),
        (6, 99, PLENTY, [(6, 1), (2, 3), (1, 6)]),  # 4 × 1 would leave two cores idle
        (1, 99, PLENTY, [(1, 1)]),
        (16, 4, PLENTY, [(4, 4), (2, 8), (1, 16)]),  # no more slots than trials
        (16, 1, PLENTY, [(1, 16)]),
        (16, 99, 6 * MEMORY_PER_TRIAL, [(6, 2), (4, 4), (2, 8), (1, 16)]),
        (16, 99, 0.5 * MEMORY_PER_TRIAL, [(1, 16)]),  # one trial there must be
    ],
)
def test_candidates(cores: int, num_trials: int, memory: float, expected: list[tuple[int, int]]) -> None:
    assert pairs(candidates(cores, num_trials, memory)) == expected


@given(st.integers(1, 256), st.integers(1, 50), st.floats(0, 1e12))
def test_no_candidate_overloads_the_machine(cores: int, num_trials: int, memory: float) -> None:
    found = candidates(cores, num_trials, memory)

    assert Candidate(1, cores) in found
    for candidate in found:
        assert candidate.slots * candidate.threads <= cores
        assert candidate.slots <= num_trials
        assert candidate.slots == 1 or candidate.slots * MEMORY_PER_TRIAL <= memory
    assert [c.slots for c in found] == sorted({c.slots for c in found}, reverse=True)


# ── how they are measured ─────────────────────────────────────────────────────────────────────────


class Bench:
    """Fake measurements, and how long they take."""

    def __init__(self, rates: dict[int, float | None], seconds: float = 0.0) -> None:
        self.rates, self.seconds, self.asked, self.now = rates, seconds, list[int](), 0.0

    def measure(self, candidate: Candidate) -> Measurement | None:
        self.asked.append(candidate.slots)
        self.now += self.seconds
        rate = self.rates[candidate.slots]
        return None if rate is None else result(candidate.slots, candidate.threads, rate)

    def explore(self) -> list[int]:
        found = candidates(16, 99, PLENTY)
        return [m.slots for m in explore(found, self.measure, lambda: self.now)]


def test_it_stops_where_fewer_slots_are_clearly_worse() -> None:
    assert Bench({16: 1000, 8: 950, 4: 700, 2: 400, 1: 200}).explore() == [16, 8, 4]
    assert Bench({16: 500, 8: 800, 4: 1000, 2: 1200, 1: 1100}).explore() == [16, 8, 4, 2, 1]


def test_what_cannot_be_measured_is_left_out() -> None:
    bench = Bench({16: None, 8: None, 4: 700, 2: 100, 1: 90})

    assert bench.explore() == [4, 2]
    assert bench.asked == [16, 8, 4, 2]
    assert Bench(dict.fromkeys((16, 8, 4, 2, 1))).explore() == []


def test_a_slow_machine_compares_two_and_no_more() -> None:
    assert Bench({16: 100, 8: 101, 4: 102, 2: 103, 1: 104}, seconds=BUDGET_S + 1).explore() == [16, 8]


# ── what is chosen ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({16: 1000, 8: 900, 4: 500}, 16),
        ({16: 955, 8: 960, 4: 1000, 2: 900}, 16),  # within five per cent the most
        ({16: 500, 8: 1000, 4: 700}, 8),
        ({1: 10}, 1),
    ],
)
def test_the_most_images_a_second_in_all_win(rates: dict[int, float], expected: int) -> None:
    chosen = choose([result(slots, 16 // slots, rate) for slots, rate in rates.items()], PLENTY)

    assert chosen is not None
    assert chosen.slots == expected


def test_what_does_not_fit_into_the_memory_is_not_chosen() -> None:
    measured = [result(16, 1, 1000, 3e9), result(8, 2, 900, 3e9), result(4, 4, 800, 3e9)]
    found = [choose(measured, gigabytes * 1e9) for gigabytes in (60, 30, 20, 1)]

    assert [m.slots if m else None for m in found] == [16, 8, 4, 4]  # the last does what it can
    assert choose([], PLENTY) is None


def test_the_line_for_people() -> None:
    measured = (result(2, 1, 1240.4), result(1, 2, 980))

    assert describe(Slots(2, 1, 0, None, measured)) == (
        "slots: 2 × 1 thread (1,240 images/s in all; 1 × 2: 980)"
    )
    assert describe(Slots(1, 2, 0, None, measured[1:])) == "slots: 1 × 2 threads (980 images/s in all)"


# ── for a sweep ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    """A machine of four cores on which two slots are best; returns what was measured on it."""
    asked: list[Candidate] = []

    def measure(case: BenchmarkCase, candidate: Candidate) -> Measurement:
        asked.append(candidate)
        return result(candidate.slots, candidate.threads, {4: 100.0, 2: 200.0, 1: 50.0}[candidate.slots])

    monkeypatch.setattr(throughput, "available_cores", lambda: 4)
    monkeypatch.setattr(throughput, "available_memory", lambda: PLENTY)
    monkeypatch.setattr(throughput, "measure_together", measure)
    return asked


def plan_of(small_sweep: SmallSweep, *more: str) -> SweepPlan:
    overrides = small_sweep.overrides("sweep.slots=auto", "sweep.num_trials=4", "trainer.device=cpu", *more)
    return compose_sweep(overrides, small_sweep.configs)


def slots_of(plan: SweepPlan) -> Slots:
    return measured_slots(plan, find_slots(plan.sweep, plan.base))


def test_a_model_is_measured_once(new_sweep: SmallSweep, four_cores: list[Candidate]) -> None:
    first, second = slots_of(plan_of(new_sweep)), slots_of(plan_of(new_sweep, "sweep.name=another"))
    assert pairs(four_cores) == [(4, 1), (2, 2), (1, 4)]
    assert first == second
    assert (first.count, first.threads, len(first.measured)) == (2, 2, 3)
    slots_of(plan_of(new_sweep, "model=keras_cnn"))
    assert len(four_cores) == 6
    slots_of(plan_of(new_sweep, "data.batch_size=32"))
    assert len(four_cores) == 9
    slots_of(plan_of(new_sweep, "optim.weight_decay=0.1", "trainer.max_epochs=1"))  # costs no time
    assert len(four_cores) == 9


def test_a_damaged_memory_is_made_anew(new_sweep: SmallSweep, four_cores: list[Candidate]) -> None:
    slots_of(plan_of(new_sweep))
    (file,) = (new_sweep.runs / "throughput").glob("*.json")
    for content in ("", "[]", '{"measured": [{"slots": 2}]}', "\x00"):
        file.write_text(content)
        four_cores.clear()
        assert slots_of(plan_of(new_sweep)).count == 2
        assert len(four_cores) == 3


def test_what_was_measured_on_a_busy_machine_is_not_kept(
    new_sweep: SmallSweep,
    four_cores: list[Candidate],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "harness")
    shares = iter([0.9, 0.5, 0.9, 0.9, 0.9, 0.9])

    def measure(case: BenchmarkCase, candidate: Candidate) -> Measurement:
        four_cores.append(candidate)
        return Measurement(candidate.slots, candidate.threads, 100.0, 1e9, cpu_share=next(shares))

    monkeypatch.setattr(throughput, "measure_together", measure)
    assert [slots_of(plan_of(new_sweep)).count for _ in range(3)] == [4, 4, 4]
    assert len(four_cores) == 2 * 3
    assert caplog.text.count("measuring how many") == 2
    assert caplog.text.count("other processes used the cores") == 1


@pytest.mark.parametrize(
    "fixed",
    ["sweep.slots=2", "sweep.threads_per_trial=1", "trainer.threads=1", "sweep.num_trials=1",
     "sweep.executor={kind:slurm}", "sweep.devices_per_trial=2"],
)  # fmt: skip
def test_what_is_fixed_or_elsewhere_is_not_measured(
    new_sweep: SmallSweep, four_cores: list[Candidate], fixed: str
) -> None:
    slots = slots_of(plan_of(new_sweep, fixed))

    assert four_cores == []
    assert slots.measured == ()


def test_the_rule_holds_where_nothing_can_be_measured(
    new_sweep: SmallSweep, four_cores: list[Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "measure_together", lambda case, candidate: None)
    plan = plan_of(new_sweep)
    by_rule = find_slots(plan.sweep, plan.base)

    assert measured_slots(plan, by_rule) == by_rule
    assert not list((new_sweep.runs / "throughput").glob("*.json"))


def test_a_dry_run_measures_nothing(new_sweep: SmallSweep, four_cores: list[Candidate]) -> None:
    assert "slots:       auto: measured at the start" in describe_sweep(plan_of(new_sweep))
    assert four_cores == []
    assert not new_sweep.runs.exists()
    assert "2 at a time" in describe_sweep(plan_of(new_sweep, "sweep.slots=2"))


def test_the_heaviest_trial_is_what_is_measured() -> None:
    plan = compose_sweep(["data=digits"])
    run = heaviest_run(plan)

    assert plan.base.finetune.kind == "linear_probe"
    assert (run.finetune.kind, run.model, run.data.batch_size) == ("full", plan.base.model, 128)
    assert run.finetune.backbone_lr_scale == 0.5  # the rule of that arm holds
    probes = compose_sweep(["data=digits", "finetune=linear_probe"])
    assert heaviest_run(probes) == probes.base


@pytest.mark.slow
def test_a_sweep_says_and_records_what_was_measured(
    small_sweep: SmallSweep, four_cores: list[Candidate]
) -> None:
    from harness.config.schema import TrackingConfig
    from harness.tracking.store import open_store

    swept = small_sweep.run("sweep.slots=auto", "sweep.num_trials=2", "trainer.device=cpu")
    output = small_sweep.output.getvalue()
    line = "slots: 2 × 2 threads (200 images/s in all; 1 × 4: 50)"
    assert line in output
    assert "2 trials, 2 at a time" in output
    slots: dict[str, Any] = small_sweep.study().user_attrs["slots"]
    assert (slots["count"], slots["threads"], len(slots["measured"])) == (2, 2, 2)
    assert json.loads((small_sweep.trial_folder(0).parent / "sweep.json").read_text())["slots"] == slots
    assert json.loads((small_sweep.trial_folder(0) / "spec-1.json").read_text())["threads"] == 2
    client = open_store(TrackingConfig(dir=str(small_sweep.runs))).client
    table = Path(client.download_artifacts(swept.parent_run_id, "slots.csv")).read_text().splitlines()
    assert table[:2] == ["slots,threads,images_per_second,memory,cpu_share", "2,2,200.0,1000000000.0,1.0"]


# ── in processes ──────────────────────────────────────────────────────────────────────────────────


def work_evenly(case: BenchmarkCase, threads: int, end: Connection) -> None:
    end.send(1e8 * threads)
    end.recv()
    end.send((100.0, 0.9))


def die(case: BenchmarkCase, threads: int, end: Connection) -> None:
    end.send(1e8)
    end.recv()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> BenchmarkCase:
    """A LeNet on the digits; a machine that is busy takes its time to import what the processes need."""
    monkeypatch.setattr(throughput, "READY_S", 600.0)
    LocalExecutor(preload=[*fake_training.PRELOAD, __name__]).start_server()
    sections = {"model": {"kind": "lenet"}, "data": {"kind": "digits", "batch_size": 32}}
    return BenchmarkCase(RunConfig.model_validate(sections), (32, 32), 10)


def test_what_processes_reach_together_is_added_up(case: BenchmarkCase) -> None:
    found = measure_together(case, Candidate(3, 2), work_evenly)

    assert found == Measurement(3, 2, images_per_second=300.0, memory=2e8, cpu_share=0.9)


def test_a_process_that_dies_is_no_measurement(case: BenchmarkCase) -> None:
    assert measure_together(case, Candidate(2, 1), die) is None


@pytest.mark.slow  # another test's fork server may know no Lightning
def test_a_small_network_is_measured(case: BenchmarkCase) -> None:
    found = measure_together(case, Candidate(2, 1))

    assert found is not None
    assert (found.slots, found.threads) == (2, 1)
    assert found.images_per_second > 0
    assert 1e6 < found.memory < 1e9
    assert 0 < found.cpu_share <= 1.1
    impossible = replace(case, run=_no_model(case.run))
    assert measure_together(impossible, Candidate(1, 1)) is None


def _no_model(run: RunConfig) -> RunConfig:
    return RunConfig.model_validate({**run.to_dict(), "model": {"kind": "timm", "name": "no_such_model"}})
