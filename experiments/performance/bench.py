"""`make bench`: measure each row of a table in turn, print it, write results.json, REPORT.md and a plot.

python -m experiments.performance.bench [--rows KEY ...] [--quick] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.performance import report
from experiments.performance.measurement import Result, Row, Skip, judge, without_number
from experiments.performance.place import FULL, QUICK, SPEED_MODEL, Place, open_place
from experiments.performance.rows import ROWS
from experiments.performance.rows.training import model_overrides
from experiments.performance.step_profile import profile_step
from experiments.performance.training import describe_machine
from harness.errors import HarnessError
from harness.tracking.environment import capture_environment

HOME = Path(__file__).parent
TRIED = Path("reports/performance")  # the folder for results of a part of the table
BUSY_LOAD = 0.5  # a load average above it means that other programs were running


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 if each row was measured or skipped, 1 if one failed, 2 without data."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    rows = [row for row in ROWS if not options.rows or row.key in options.rows]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    started, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            place = open_place(Path(folder), QUICK if options.quick else FULL)
        except HarnessError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        announce(console, place, rows, load)
        results = [measure(console, place, row, number) for number, row in enumerate(rows, start=1)]
        facts = describe(place, load, command(arguments))
    facts["seconds"] = time.perf_counter() - started
    partial = options.quick or options.rows
    output = options.output or (TRIED if partial else HOME)
    report.write(output, results, facts)
    report.print_table(console, results)
    console.print(f"{facts['seconds'] / 60:.1f} min; written: {output}/{report.REPORT}, {report.RESULTS}")
    return 1 if any(result.verdict == "failed" for result in results) else 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", nargs="+", metavar="KEY", choices=[row.key for row in ROWS])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it work? Numbers mean nothing")
    parser.add_argument(
        "--output", type=Path, help=f"default: {HOME.name}'s own folder, or {TRIED} for a part"
    )
    return parser


def announce(console: Console, place: Place, rows: Sequence[Row], load: float) -> None:
    """Print how many rows will be measured, on which data, and about how long it takes."""
    minutes = sum(row.budget_s for row in rows) / 60
    console.print(f"{len(rows)} rows on {place.data}, about {minutes:.0f} min on two quiet cores")
    if not place.is_cifar10:
        console.print("NOT CIFAR-10: it is not in DATA_DIR, so the numbers are of scikit-learn's digits")
    if load > BUSY_LOAD:
        console.print(f"note: the machine is busy (load {load:.1f}); only ratios can mean something")


def measure(console: Console, place: Place, row: Row, number: int) -> Result:
    """Measure a row; an error becomes the row's result, so that the other rows are still measured."""
    console.print(f"{number:2d} {row.key:<16} (about {row.budget_s} s) … ", end="")
    started = time.perf_counter()
    try:
        outcome = row.measure(place)
        result = judge(row, outcome, time.perf_counter() - started)
    except Skip as skip:
        result = without_number(row, "skipped", str(skip))
    except Exception as error:
        traceback.print_exc()
        reason = traceback.format_exception_only(error)[-1].strip()
        result = without_number(row, "failed", reason, time.perf_counter() - started)
    console.print(f"{report.value_text(result)}, {result.verdict}, {result.seconds:.0f} s", markup=False)
    return result


def describe(place: Place, load: float, typed: str) -> dict[str, Any]:
    """Return everything about this run but its rows, as plain JSON types; no path, no host's name."""
    overrides = model_overrides(place, SPEED_MODEL, place.scale.speed_batch)
    machine = place.run(describe_machine, overrides)
    environment = capture_environment()
    checkout = environment.checkout
    return {
        "command": typed,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "data": {"name": place.data, "train": place.num_train, "val": place.num_val},
        "speed_model": SPEED_MODEL,
        "sizes": asdict(place.scale),
        "is_quick": place.scale == QUICK,
        "load_before": round(load, 2),
        "hardware": {
            "cpu": environment.cpu,
            "cores": environment.cpu_cores,
            "memory_gib": environment.memory_gib,
            "system": environment.system,
            **machine,
        },
        "versions": {"python": environment.python, **environment.packages},
        "commit": checkout and checkout.commit + (" with changes" if checkout.is_dirty else ""),
        "profile": place.run(profile_step, overrides),
    }


def command(arguments: Sequence[str] | None) -> str:
    typed = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["make", "bench", *([f"ARGS={shlex.join(typed)}"] if typed else [])])


if __name__ == "__main__":
    sys.exit(main())
