"""Measures the time and memory of `harness compare` in a large run store: for a small sweep, for all runs.

    python -m experiments.scale.comparing [--runs 5000] [--epochs 100] [--metrics 30]

The store is filled with copies of one recorded trial, which are inserted directly into its database, each
with another score. The whole command is measured in new processes: its time, processor time and peak memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from harness.config.schema import TrackingConfig
from harness.tracking import names
from harness.tracking.store import open_store

TABLES = ("params", "tags", "metrics", "latest_metrics")  # that hold what is recorded of a run
NUM_PARAMS, NUM_TRIALS = 60, 8
REPEATS = 3


def fill(tracking: TrackingConfig, num_runs: int, num_epochs: int, num_metrics: int) -> None:
    """Record a sweep of eight trials, and trials of another sweep until the store has `num_runs` runs."""
    store = open_store(tracking)
    parent = store.start_run("small", "digits", {names.KIND: "sweep", names.SWEEP: "small"})
    trial_id = ""
    for number in range(NUM_TRIALS):
        tags = {names.KIND: "trial", names.SWEEP: "small", names.TRIAL: str(number)}
        trial = store.start_run(f"trial-{number:04d}", "digits", tags, parent.run_id)
        trial.log_params({f"key{key}": str(number * (key < 10)) for key in range(NUM_PARAMS)})
        for context in ("training", "validation"):
            trial.log_data(
                name="digits",
                digest=context * 4,
                source="here",
                num_rows=9,
                class_names=["x"],
                context=context,
            )
        trial.log_epoch(0, {f"val/metric{key}": 0.1 * key for key in range(num_metrics)})
        trial.log_summary({names.VAL_ACCURACY: 0.5 + number / 100})
        trial.finish("FINISHED")
        trial_id = trial.run_id
    parent.finish("FINISHED")
    with closing(sqlite3.connect(Path(tracking.dir) / "mlflow.db")) as database, database:
        _add_epochs(database, trial_id, num_epochs)
        _copy(database, trial_id, num_runs - NUM_TRIALS - 1)


def _add_epochs(database: sqlite3.Connection, run_id: str, num_epochs: int) -> None:
    """Give a run's metrics a point of each further epoch."""
    database.executemany(
        "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) "
        "SELECT key, value, timestamp + ?, run_uuid, ?, is_nan FROM metrics WHERE run_uuid = ? AND step = 0",
        ((1000 * epoch, epoch, run_id) for epoch in range(1, num_epochs)),
    )


def _copy(database: sqlite3.Connection, run_id: str, count: int) -> None:
    """Copy a run under new ids, as trials of another sweep."""
    ids = [uuid.uuid4().hex for _ in range(count)]
    _copy_data(database, run_id, ids)
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
    scores = [(0.5 + 0.4 * number / count, new) for number, new in enumerate(ids)]
    is_score = f"key = '{names.VAL_ACCURACY}' AND run_uuid = ?"
    database.executemany(f"UPDATE latest_metrics SET value = ? WHERE {is_score}", scores)
    # The copies belong to another sweep; the original is still a trial of the small one.
    in_store = f"UPDATE tags SET value = 'another' WHERE key = '{names.PARENT}' AND run_uuid = ?"
    database.executemany(in_store, ((new,) for new in ids))


def _copy_data(database: sqlite3.Connection, run_id: str, ids: Sequence[str]) -> None:
    """Record the images of a run as those of its copies."""
    used = database.execute(
        "SELECT source_id, value FROM inputs JOIN input_tags USING (input_uuid) "
        "WHERE destination_id = ? AND name = 'mlflow.data.context'",
        (run_id,),
    ).fetchall()
    for source, context in used:
        new_ids = [(uuid.uuid4().hex, new) for new in ids]
        database.executemany(
            "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id) "
            "VALUES (?, 'DATASET', ?, 'RUN', ?)",
            ((input_id, source, new) for input_id, new in new_ids),
        )
        database.executemany(
            "INSERT INTO input_tags (input_uuid, name, value) VALUES (?, 'mlflow.data.context', ?)",
            ((input_id, context) for input_id, _ in new_ids),
        )


def measure(arguments: Sequence[str]) -> str:
    """Return the time, the processor time and the peak memory of a command in a new process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-m", "harness", *arguments], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # The peak is that of the largest child so far, so the larger command must come last.
    return f"{seconds:6.2f} s, {busy:5.2f} s of the processor, peak memory {after.ru_maxrss / 1024:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--metrics", type=int, default=30)
    options = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as name:
        tracking = TrackingConfig(dir=name)
        fill(tracking, options.runs, options.epochs, options.metrics)
        size = (Path(name) / "mlflow.db").stat().st_size / 2**20
        print(
            f"{options.runs:,} runs of {options.metrics} metrics × {options.epochs} epochs, {size:,.0f} MB; "
            f"each command {REPEATS} times in a new process",
            flush=True,
        )
        compare = ["compare", "--mlruns", name, "--output", f"{name}/tables"]
        for _ in range(REPEATS):
            print(f"{measure(['--version'])}: harness --version", flush=True)
        for _ in range(REPEATS):
            print(f"{measure(compare)}: the sweep of {NUM_TRIALS} trials", flush=True)
        every = ["--filter", f"metrics.`{names.VAL_ACCURACY}` > 0"]
        for _ in range(REPEATS):
            print(f"{measure([*compare, *every])}: all runs", flush=True)


if __name__ == "__main__":
    main()
