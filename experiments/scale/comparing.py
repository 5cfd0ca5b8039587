"""Measures how long `harness compare` takes for a small sweep in a large run store.

    python -m experiments.scale.comparing [--runs 5000]

The store is filled with copies of one recorded trial, which are inserted directly into its database. Two
times are measured: that of the command's work in this process, without imports, and that of the whole command
in a new process.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path

from harness.analysis.compare import compare_runs
from harness.config.schema import TrackingConfig
from harness.tracking import names
from harness.tracking.store import open_store

TABLES = ("params", "tags", "metrics", "latest_metrics")  # that hold what is recorded of a run
NUM_PARAMS, NUM_METRICS, NUM_TRIALS = 60, 17, 8
REPEATS = 3


def fill(tracking: TrackingConfig, num_runs: int) -> None:
    """Record a sweep of eight trials, and trials of another sweep until the store has `num_runs` runs."""
    store = open_store(tracking)
    parent = store.start_run("small", "digits", {names.KIND: "sweep", names.SWEEP: "small"})
    trial_id = ""
    for number in range(NUM_TRIALS):
        tags = {names.KIND: "trial", names.SWEEP: "small", names.TRIAL: str(number)}
        trial = store.start_run(f"trial-{number:04d}", "digits", tags, parent.run_id)
        trial.log_params({f"key{key}": str(number * (key < 10)) for key in range(NUM_PARAMS)})
        trial.log_epoch(0, {f"val/metric{key}": 0.1 * key for key in range(NUM_METRICS)})
        trial.log_summary({names.VAL_ACCURACY: 0.5 + number / 100})
        trial.finish("FINISHED")
        trial_id = trial.run_id
    parent.finish("FINISHED")
    with closing(sqlite3.connect(Path(tracking.dir) / "mlflow.db")) as database, database:
        _copy(database, trial_id, num_runs - NUM_TRIALS - 1)


def _copy(database: sqlite3.Connection, run_id: str, count: int) -> None:
    """Copy a run under new ids, as trials of another sweep."""
    ids = [uuid.uuid4().hex for _ in range(count)]
    for table in ("runs", *TABLES):
        cursor = database.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (run_id,))
        columns = [column[0] for column in cursor.description]
        place = columns.index("run_uuid")
        rows = cursor.fetchall()
        marks = ", ".join("?" * len(columns))
        database.executemany(
            f"INSERT INTO {table} VALUES ({marks})",
            ((*row[:place], new, *row[place + 1 :]) for new in ids for row in rows),
        )
    # The copies belong to another sweep; the original is still a trial of the small one.
    in_store = f"UPDATE tags SET value = 'another' WHERE key = '{names.PARENT}' AND run_uuid = ?"
    database.executemany(in_store, ((new,) for new in ids))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5000)
    num_runs = parser.parse_args().runs
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as name:
        tracking = TrackingConfig(dir=name)
        fill(tracking, num_runs)
        print("compare: 8 trials among", f"{num_runs:,} runs")
        for _ in range(REPEATS):
            began, busy = time.monotonic(), time.process_time()
            comparison = compare_runs(tracking)
            comparison.write(Path(name) / "tables")
            comparison.to_text()
            print(
                f"{time.monotonic() - began:7.2f} s, {time.process_time() - busy:.2f} s of the processor",
                flush=True,
            )
        command = [sys.executable, "-m", "harness", "compare", "--mlruns", name, "--output", f"{name}/tables"]
        for _ in range(REPEATS):
            began = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            print(f"{time.monotonic() - began:7.2f} s, the whole command in a new process", flush=True)


if __name__ == "__main__":
    main()
