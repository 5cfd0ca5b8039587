"""`make scale`: simulated workers on PostgreSQL and on SQLite; writes results.json, REPORT.md and its plot.

python -m experiments.scale [--trials N ...] [--live N] [--paced N] [--killed N] [--tpe N] [--workers N]
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.scale import report
from experiments.scale.filling import fill
from experiments.scale.fresh import fresh_costs
from experiments.scale.postgres import NoPostgresError, running_postgres
from experiments.scale.simulation import Crew, Simulated, prepare, simulate
from experiments.scale.worker import Job
from harness.config.compose import SweepPlan, compose_sweep
from harness.search.database.optuna_private import study_id
from harness.search.database.storage import DATABASE, open_storage
from harness.search.study.trials import create_study
from harness.tracking.environment import capture_environment

HOME = Path(__file__).parent
TRIED = Path("reports/scale")  # the folder for results with other options than the defaults
REPORTS = 10  # scores that a trial reports
KILL_EVERY_S = 1.0
ORIGINALS = 20  # simulated trials, whose copies fill a study
TPE_WORKERS = 8  # with TPE: fewer are enough to keep two cores busy
FEW_WORKERS = 8  # on SQLite: as many as one machine would have
CALM = 0.6  # share of the highest rate at which workers with pauses run, up to the target rate


@dataclass(frozen=True)
class Database:
    """The database of a simulation, and how many workers use it."""

    name: str
    url: str
    workers: int
    server: int | None  # id of the server's first process; None for SQLite


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all simulations; return 0 if the trials in the database were right after each, otherwise 1."""
    options = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # SystemExit stops the server
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    started, load = time.perf_counter(), os.getloadavg()[0]
    prepare()
    rows, fresh = [], []
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        for database in databases(Path(folder), options, console):
            for budget in options.trials:
                measured, costs = measure(database, budget, options, Path(folder), console)
                rows += measured
                fresh.append({"database": database.name, "trials": budget, **costs})
    facts = describe(arguments, load, time.perf_counter() - started)
    is_usual = not (sys.argv[1:] if arguments is None else arguments)
    output = options.output or (HOME if is_usual else TRIED)
    report.write(output, rows, fresh, facts)
    console.print(f"{facts['seconds'] / 60:.1f} min; written: {output}/{report.REPORT}, {report.RESULTS}")
    return 1 if any(row["mistakes"] for row in rows) else 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make scale", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--trials", type=int, nargs="+", default=[1000, 10_000], help="budgets; default: 1000 10000")
    add("--live", type=int, default=600, help="how many trials of each are simulated; the others are copies")
    add("--paced", type=int, default=200, help="trials at a rate that leaves the machine time")
    add("--killed", type=int, default=200, help="trials while a worker is killed every second")
    add("--tpe", type=int, default=24, help="trials that TPE suggests")
    add("--workers", type=int, default=64, help=f"on PostgreSQL; on SQLite at most {FEW_WORKERS}")
    add("--databases", nargs="+", default=["postgresql", "sqlite"], choices=["postgresql", "sqlite"])
    add("--output", type=Path, help=f"default: this folder, or {TRIED} with any option")
    return parser


def databases(folder: Path, options: argparse.Namespace, console: Console) -> Iterator[Database]:
    """Yield each database while it runs; PostgreSQL only where it is installed."""
    if "postgresql" in options.databases:
        try:
            with running_postgres({"max_connections": str(100 + 2 * options.workers)}) as server:
                yield Database("PostgreSQL", server.url, options.workers, server.pid)
        except NoPostgresError as error:
            console.print(f"skipped: {error}")
    if "sqlite" in options.databases:
        yield Database("SQLite", f"sqlite:///{folder}/{DATABASE}", min(FEW_WORKERS, options.workers), None)


def measure(
    database: Database, budget: int, options: argparse.Namespace, folder: Path, console: Console
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Run the simulations of one study, which grows to `budget` trials and a little beyond.

    Returns:
        A row per simulation, and what a new process spends on the study then (`fresh_costs`).
    """
    rows: list[dict[str, Any]] = []
    name = f"sweep-{budget}"
    storage = open_storage(database.url)
    study = create_study(storage, name, plan_of("random", 1).sweep)
    copies = budget - min(budget, options.live)
    if copies:
        originals = min(copies, ORIGINALS)
        Crew(job_of(database, name, "random", originals, folder / f"{database.name}-{name}-seed"), 2).run()
        fill(storage, study_id(study), copies)

    def run(
        kind: str, sampler: str, more: int, kill_every_s: float | None = None, pause_s: float = 0
    ) -> None:
        size = more + (rows[-1]["size"] if rows else 0)
        job = job_of(database, name, sampler, size, folder / f"{database.name}-{name}-{len(rows)}")
        workers = min(TPE_WORKERS, database.workers) if sampler == "tpe" else database.workers
        simulated = simulate(replace(job, pause_s=pause_s), workers, database.server, kill_every_s)
        rows.append(row_of(database.name, kind, size, workers, simulated))
        console.print(report.line(rows[-1]))

    run("random", "random", budget)
    if budget == max(options.trials):
        calm = min(report.TARGET_RATE, CALM * report.rate(rows[0]))
        pause_s = database.workers / calm / REPORTS
        run(f"random, {calm:.1f}/s asked for", "random", options.paced, pause_s=pause_s)
    run("random, a kill a second", "random", options.killed, KILL_EVERY_S)
    run("TPE, median pruner", "tpe", options.tpe)
    console.print(f"{database.name}, {budget:,} trials: what a fresh process pays …")
    return rows, fresh_costs(job_of(database, name, "tpe", budget, folder))


def plan_of(sampler: str, num_trials: int) -> SweepPlan:
    """Return the default sweep; random search has no pruner, so that only the database limits the rate."""
    pruner = "median" if sampler == "tpe" else "none"
    sizes = [f"sweep.num_trials={num_trials}", f"sweep.sampler.kind={sampler}"]
    return compose_sweep(["sweep=default", f"sweep.pruner.kind={pruner}", *sizes])


def job_of(database: Database, name: str, sampler: str, num_trials: int, folder: Path) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(name, database.url, plan_of(sampler, num_trials).to_dict(), reports=REPORTS, folder=folder)


def row_of(database: str, kind: str, size: int, workers: int, simulated: Simulated) -> dict[str, Any]:
    """Return a simulation's results as plain values, with percentiles in place of all the times."""
    values = asdict(simulated)
    times = values.pop("times")
    steps = {step: report.percentiles(seconds) for step, seconds in times.items()}
    return {"database": database, "kind": kind, "size": size, "workers": workers, **values, "steps": steps}


def describe(arguments: Sequence[str] | None, load: float, seconds: float) -> dict[str, Any]:
    """Return what holds for all simulations together, without paths and the host's name."""
    typed = sys.argv[1:] if arguments is None else arguments
    environment = capture_environment()
    checkout = environment.checkout
    return {
        "command": shlex.join(["make", "scale", *([f"ARGS={shlex.join(typed)}"] if typed else [])]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": seconds,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "sync_ms": round(1000 * sync_seconds(), 1),
        "cpu": environment.cpu,
        "cores": environment.cpu_cores,
        "memory_gib": environment.memory_gib,
        "versions": {"python": environment.python, **environment.packages},
        "commit": checkout and checkout.commit + (" with changes" if checkout.is_dirty else ""),
    }


def sync_seconds(times: int = 50) -> float:
    """Return the mean time of writing a block and syncing it to the disk: no commit can be faster."""
    with tempfile.TemporaryFile() as file:
        started = time.perf_counter()
        for _ in range(times):
            os.pwrite(file.fileno(), bytes(4096), 0)
            os.fsync(file.fileno())
        return (time.perf_counter() - started) / times


if __name__ == "__main__":
    sys.exit(main())
