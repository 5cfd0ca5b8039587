"""Measures how many trials to train at a time on a CPU: the slots × threads with the most images per second.

The best choice depends on the model and the machine. So, for each candidate, as many processes as there
would be trials take training steps of the sweep's most expensive run at the same time. The result is kept in
a file for later sweeps of the same model on the same machine. `LocalExecutor.prepare` calls `measured_slots`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.config.compose import SweepPlan
from harness.config.finetune import policies
from harness.config.schema import RunConfig
from harness.config.space import Scalar
from harness.data import load_splits
from harness.files import write_json
from harness.search.coordinator.slots import Measurement, Slots
from harness.search.suggest.space import MAX_CORNERS, corners
from harness.signals import leave_to_parent
from harness.tracking.environment import available_cores, available_memory, package_versions

log = logging.getLogger(__name__)

MEMORY_PER_TRIAL = 1.5e9  # bytes; assumed before anything is measured
TRIAL_OVERHEAD = 0.3e9  # bytes that a trial needs beside its training step: Lightning, MLflow, validation
BUDGET_S = 10.0  # after this time no further candidate is measured, if two have been
MEASURE_S = 1.5  # how long each candidate takes training steps
READY_S = 60.0  # for a model to be built and to take its first steps
# A candidate below this share of the best so far ends the measurement: fewer slots would be slower still.
CLEARLY_WORSE = 0.9
# Candidates within 5 % of the best count as equal. Of these, prefer more slots, because start-up,
# validation and checkpoints, which are not measured, use one core per trial.
AS_GOOD = 0.95
QUIET = 0.85  # share of the cores' time that we got; below it, the result is not kept for later sweeps
SHAPING = ("model", "finetune", "augment")  # sections that decide what a step costs


@dataclass(frozen=True)
class Candidate:
    """Trials at a time, and the threads of each."""

    slots: int
    threads: int


@dataclass(frozen=True)
class BenchmarkCase:
    """A training step to be measured: the run, and the size of its data set's images (height, width)."""

    run: RunConfig
    image_size: tuple[int, int]
    num_classes: int


def candidates(cores: int, num_trials: int, memory: float) -> list[Candidate]:
    """Return the candidates, most slots first: powers of two, and the most that fit; each uses all cores."""
    limit = max(1, min(cores, num_trials, int(memory / MEMORY_PER_TRIAL)))
    powers = itertools.takewhile(lambda count: count < limit, (2**power for power in itertools.count()))
    most = {cores // count: count for count in (*powers, limit)}  # of equal threads, the more slots
    return [Candidate(slots, threads) for threads, slots in sorted(most.items())]


def explore(
    found: Sequence[Candidate],
    measure: Callable[[Candidate], Measurement | None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Measurement]:
    """Measure from the most slots down, until a candidate is clearly slower or the time is used up.

    Args:
        measure: returns None for a candidate that fails, such as one that runs out of memory.
    """
    started, measured = clock(), list[Measurement]()
    for candidate in found:
        if len(measured) > 1 and clock() - started > BUDGET_S:
            break
        result = measure(candidate)
        if result is None:
            continue
        measured.append(result)
        if result.images_per_second < CLEARLY_WORSE * max(m.images_per_second for m in measured):
            break
    return measured


def choose(measured: Sequence[Measurement], memory: float) -> Measurement | None:
    """Return the fastest candidate that fits into memory (of equals: most slots), else the smallest one."""
    fitting = [m for m in measured if m.slots * (m.memory + TRIAL_OVERHEAD) <= memory]
    if not fitting:
        return min(measured, key=lambda m: m.slots, default=None)
    best = max(m.images_per_second for m in fitting)
    return max((m for m in fitting if m.images_per_second >= AS_GOOD * best), key=lambda m: m.slots)


def is_measured(plan: SweepPlan) -> bool:
    """Return whether slots are measured: trials run on this machine's CPU, and nothing fixes the slots."""
    from harness.training.devices.machine import resolve_machine

    sweep, trainer = plan.sweep, plan.base.trainer
    is_free = sweep.slots == sweep.threads_per_trial == "auto" and trainer.threads is None
    is_here = sweep.executor.kind == "local" and sweep.devices_per_trial == 1
    return is_free and is_here and resolve_machine(trainer).device.type == "cpu"


def measured_slots(plan: SweepPlan, by_rule: Slots) -> Slots:
    """Return the best slots of this machine for a sweep, measured now unless they are known.

    Args:
        by_rule: the slots to use where nothing can be measured.
    """
    if not is_measured(plan):
        return by_rule
    memory = available_memory()
    found = candidates(available_cores(), plan.sweep.num_trials, memory)
    if len(found) == 1:
        return replace(by_rule, count=found[0].slots, threads=found[0].threads)
    measured = _known_or_measured(plan, found)
    best = choose(measured, memory)
    if best is None:
        return by_rule
    return replace(by_rule, count=best.slots, threads=best.threads, measured=tuple(measured))


def heaviest_run(plan: SweepPlan) -> RunConfig:
    """Return the base run with the model, finetuning and augmentation of the space's most expensive trial."""
    costs = {policy.model_fields["kind"].default: policy.step_cost for policy in policies()}

    def weight(chosen: dict[str, Scalar]) -> tuple[float, ...]:
        # `finetune` names a file of configs/finetune/. A file that is not named like the kind of its policy
        # counts as the most expensive.
        cost = costs.get(chosen["finetune"], math.inf) if "finetune" in chosen else 0
        sizes = (
            chosen.get(name) or 0
            for name in (
                "finetune.trainable_groups",
                "finetune.final_groups",
                "finetune.rank",
                "model.image_size",
            )
        )
        return (cost, *map(float, sizes))

    heaviest = max(itertools.islice(corners(plan.sweep), MAX_CORNERS), key=weight)
    shaping = {path: value for path, value in heaviest.items() if path.partition(".")[0] in SHAPING}
    return plan.compose_trial(shaping) if shaping else plan.base


def case_of(run: RunConfig) -> BenchmarkCase:
    """Return the training step of a run, to be measured."""
    splits = load_splits(run.data)
    height, width = splits.train.images.shape[1:3]
    return BenchmarkCase(run, (height, width), len(splits.class_names))


def describe(slots: Slots) -> str:
    """Return the measurements in one line, the chosen one first."""
    others = [m for m in slots.measured if m.slots != slots.count]
    chosen = next(m for m in slots.measured if m.slots == slots.count)
    rest = "; ".join(f"{m.slots} × {m.threads}: {m.images_per_second:,.0f}" for m in others)
    threads = f"{chosen.threads} thread{'s' if chosen.threads > 1 else ''}"
    return f"slots: {chosen.slots} × {threads} ({chosen.images_per_second:,.0f} images/s in all" + (
        f"; {rest})" if rest else ")"
    )


# ── earlier measurements ──────────────────────────────────────────────────────────────────────────


def _known_or_measured(plan: SweepPlan, found: Sequence[Candidate]) -> list[Measurement]:
    case = case_of(heaviest_run(plan))
    facts = _facts(case, found)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    file = Path(plan.base.tracking.dir).expanduser().resolve() / "throughput" / f"{key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):  # two at once would slow each other down
        if known := read_measurements(file):
            return known
        log.info("measuring how many trials to train at a time (once for this model and machine) …")
        measured = explore(found, lambda candidate: measure_together(case, candidate))
        if any(m.cpu_share < QUIET for m in measured):
            log.info("note: other processes used the cores meanwhile; the next call measures again")
        elif measured:
            write_json(file, {"facts": facts, "measured": [asdict(m) for m in measured]})
        return measured


def _facts(case: BenchmarkCase, found: Sequence[Candidate]) -> dict[str, Any]:
    """Return everything that the speed depends on, except the load by other processes."""
    from harness.training.devices.machine import resolve_machine

    run, machine = case.run, resolve_machine(case.run.trainer)
    return {
        **{name: getattr(run, name).model_dump(mode="json") for name in SHAPING},
        "optimizer": run.optim.algorithm,
        "batch_size": run.data.batch_size,
        "image_size": list(case.image_size),
        "classes": case.num_classes,
        "keep_memory": run.trainer.keep_memory,
        "cpu": machine.describe()["device_name"],
        "precision": [run.trainer.precision, machine.precision],
        "torch": package_versions().get("torch"),
        "cores": available_cores(),
        "candidates": [[candidate.slots, candidate.threads] for candidate in found],
    }


def read_measurements(file: Path) -> list[Measurement]:
    """Return the measurements in a file; an empty list if there are none, or they cannot be read."""
    try:
        return [Measurement(**m) for m in json.loads(file.read_text(encoding="utf-8"))["measured"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


# ── the measurement itself ────────────────────────────────────────────────────────────────────────


def _benchmark(case: BenchmarkCase, threads: int, end: Connection) -> None:
    """Run in a child process: send the memory of a step, wait for the other processes, send the speed."""
    from harness.training.benchmark_step import StepBenchmark
    from harness.training.devices.machine import prepare_process

    leave_to_parent()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    prepare_process(threads, case.run.trainer.keep_memory)
    benchmark = StepBenchmark(case.run, case.image_size, case.num_classes)
    end.send(benchmark.memory)
    end.recv()
    end.send(benchmark.time_steps(MEASURE_S))


Work = Callable[[BenchmarkCase, int, Connection], None]


def measure_together(
    case: BenchmarkCase, candidate: Candidate, work: Work = _benchmark
) -> Measurement | None:
    """Let `candidate.slots` processes train at the same time; None if one of them fails.

    Args:
        work: runs in each process; it sends the memory of a step, waits for a message, and sends the speed.
    """
    with _processes(case, candidate, work) as ends:
        try:
            memory = max(_receive(end) for end in ends)
            for end in ends:
                end.send("go")
            rates, shares = zip(*map(_receive, ends), strict=True)
        except (EOFError, OSError):  # a process died (out of memory?), or took too long
            return None
    rate, share = round(sum(rates), 1), round(sum(shares) / len(shares), 2)
    return Measurement(candidate.slots, candidate.threads, rate, memory, share)


def _receive(end: Connection) -> Any:
    if not end.poll(READY_S):
        raise TimeoutError
    return end.recv()


@contextlib.contextmanager
def _processes(case: BenchmarkCase, candidate: Candidate, work: Work) -> Iterator[list[Connection]]:
    """Start processes from the fork server that also starts trials, and end them whatever happens."""
    context = multiprocessing.get_context("forkserver")
    processes: list[BaseProcess] = []
    ends: list[Connection] = []
    try:
        for _ in range(candidate.slots):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(case, candidate.threads, theirs))
            process.start()
            theirs.close()
            processes.append(process)
            ends.append(ours)
        yield ends
    finally:
        for started, end in zip(processes, ends, strict=True):
            end.close()
            started.kill()
            started.join()
