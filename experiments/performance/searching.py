"""Measures searches: whole sweeps, the start of trials, memory, recording, and the usual script."""

from __future__ import annotations

import io
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytorch_lightning as pl
from rich.console import Console

from experiments.performance.measurement import Epoch, Timing
from experiments.performance.place import PRELOAD, Place
from experiments.performance.usual_script import Mode, Search
from harness.config.compose import compose_run, compose_sweep
from harness.config.schema import TrackingConfig
from harness.data import load_splits
from harness.errors import DivergedError
from harness.search.executors.local import LocalExecutor, LocalPlacement, RunTrial
from harness.search.study.trials import TrialRow
from harness.search.sweep import run_sweep
from harness.search.trial import run as trial
from harness.tracking.environment import available_cores
from harness.tracking.store import open_store
from harness.training.callbacks import EpochRecorder

STOP_AT_BATCH = 2  # after two whole steps, the optimiser has its state, and memory is at its peak
MEMORY_POLL_S = 0.1
PLACED, FIRST_STEP = "placed", "first-step"  # files beside a trial's spec, each with a time (`time.time`)


# ── the harness ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Sweep:
    """A sweep that has ended."""

    seconds: float
    rows: list[TrialRow]
    folder: Path

    def read_times(self, name: str) -> list[float]:
        return [float((self.folder / f"trial-{row.number:04d}" / name).read_text()) for row in self.rows]


class TimingExecutor(LocalExecutor):
    """An executor that records when it starts the process of each trial."""

    def place(self, spec_path: Path) -> LocalPlacement:
        spec_path.with_name(PLACED).write_text(repr(time.time()))
        return super().place(spec_path)


def sweep(place: Place, name: str, overrides: list[str], run_trial: RunTrial = trial.run) -> Sweep:
    """Run the sweep of configs/sweep/default.yaml without time limit, pruner and test evaluation."""
    always = ["sweep=default", f"sweep.name={name}", "sweep.max_minutes=null", "sweep.pruner.kind=none"]
    alike = [
        "sweep.compute_per_trial=null",
        "sweep.replicate.seeds=0",
    ]  # images and trials are what is asked for
    plan = compose_sweep(place.overrides(*always, *alike, "sweep.evaluate_test=false", *overrides))
    executor = TimingExecutor(run_trial, PRELOAD)
    started = time.perf_counter()
    result = run_sweep(plan, console=Console(file=io.StringIO()), executor=executor)
    seconds = time.perf_counter() - started
    failures = [row.reason for row in result.rows if row.state == "failed"]
    if failures:
        raise RuntimeError(f"a trial failed: {failures[0]}")
    return Sweep(seconds, result.rows, place.folder / "mlruns" / "sweeps" / name)


def slowest_trial(place: Place, ended: Sweep, num_images: int) -> Timing:
    """Return the epochs of the trial that took longest, and the whole sweep's time."""
    client = open_store(TrackingConfig(dir=str(place.folder / "mlruns"))).client

    def history(run_id: str, metric: str) -> list[float]:
        return [point.value for point in client.get_metric_history(run_id, metric)]

    longest = max(ended.rows, key=lambda row: row.seconds or 0.0)
    assert longest.run_id is not None
    train_s = [num_images / rate for rate in history(longest.run_id, "images_per_second")]
    epoch_s = history(longest.run_id, "epoch_seconds")
    epochs = tuple(Epoch(t, total - t) for t, total in zip(train_s, epoch_s, strict=True))
    return Timing(ended.seconds, epochs)


def run_and_stop(spec_path: str) -> int:
    """Run a trial until it has made a few steps, and note when the first one began."""
    note = Path(spec_path).with_name(FIRST_STEP)

    def on_train_batch_start(_: Any, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            note.write_text(repr(time.time()))
        if batch_idx == STOP_AT_BATCH:
            raise DivergedError("stopped: it was only to be started")  # ends a trial for good, at once

    with patch.object(EpochRecorder, "on_train_batch_start", on_train_batch_start):
        return trial.run(spec_path)


def start_seconds(place: Place, name: str, overrides: list[str], num_trials: int) -> list[float]:
    """Return, for each trial but the first, the seconds from its placement to its first training step."""
    more = [f"sweep.num_trials={num_trials}", "sweep.slots=1", *overrides]
    ended = sweep(place, name, more, run_and_stop)
    pairs = zip(ended.read_times(PLACED), ended.read_times(FIRST_STEP), strict=True)
    return [first - placed for placed, first in pairs][1:]


def peak_gigabytes(place: Place, name: str, overrides: list[str], slots: int) -> float:
    """Return the peak memory of all processes of a sweep that runs `slots` trials at the same time."""
    more = [f"sweep.num_trials={slots}", f"sweep.slots={slots}", *overrides]
    with sampled_memory() as peaks:
        sweep(place, name, more, run_and_stop)
    return max(peaks) / 1e9


@contextmanager
def sampled_memory() -> Iterator[list[int]]:
    """Sample the proportional set size (bytes) of this process and all under it: shared pages count once."""
    peaks, done = [_tree_pss()], threading.Event()

    def sample() -> None:
        while not done.wait(MEMORY_POLL_S):
            peaks.append(_tree_pss())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peaks
    finally:
        done.set()
        sampler.join()


def _tree_pss() -> int:
    own = psutil.Process()
    return sum(_pss(process) for process in [own, *own.children(recursive=True)])


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
        return 0


# ── recording ─────────────────────────────────────────────────────────────────────────────────────


def recording_seconds(overrides: list[str], epochs: int) -> tuple[float, float]:
    """Return the median seconds of recording an epoch in MLflow, and of reporting it to Optuna."""
    from harness.search.database.optuna_private import trial_id
    from harness.search.database.storage import open_storage, storage_url
    from harness.search.study import trials as studies
    from harness.search.suggest import pruners

    plan = compose_sweep([*overrides, "sweep=default"])
    tracker = open_store(plan.base.tracking).start_run("bench", "bench", {})
    storage = open_storage(storage_url(plan.base.tracking.dir))
    name = f"recording-{tracker.run_id}"
    asked = studies.create_study(storage, name, plan.sweep).ask()
    study = studies.load_study_for_trial(storage, name, plan.sweep, asked.number)
    pruner = pruners.build_pruner(plan.sweep.pruner, epochs)
    metrics = dict.fromkeys(
        ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "images_per_second"), 0.5
    )
    tracked, told = [], []
    for epoch in range(epochs):
        started = time.perf_counter()
        tracker.log_epoch(epoch, {**metrics, "epoch_seconds": 10.0})
        middle = time.perf_counter()
        pruners.report_score(study, trial_id(asked), epoch + 1, 0.5)
        pruners.should_prune(study, trial_id(asked), pruner)
        tracked.append(middle - started)
        told.append(time.perf_counter() - middle)
    tracker.finish("FINISHED")
    return statistics.median(tracked), statistics.median(told)


# ── the usual script ──────────────────────────────────────────────────────────────────────────────


class EpochTimer(pl.Callback):
    """Times the epochs of the usual script."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self._started = self._trained = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = time.perf_counter()
        self.epochs.append(Epoch(self._trained - self._started, now - self._trained))


def usual_trial(overrides: list[str], mode: Mode, num_val: int, folder: str) -> Timing:
    """Time a trial of two epochs of the usual script, on the images of the harness's split."""
    import torch

    torch.set_num_threads(available_cores())  # its default, which the fork server has lowered
    splits = load_splits(compose_run(overrides).data)
    timer = EpochTimer()
    search = Search(
        mode=mode,
        train=(splits.train.gather(slice(None)), splits.train.labels),
        val=(splits.val.gather(slice(num_val)), splits.val.labels[:num_val]),
        epochs=2,
        folder=Path(folder),
        callbacks=(timer,),
    )
    started = time.perf_counter()
    search.run(num_trials=1)
    seconds = time.perf_counter() - started
    return Timing(seconds, tuple(timer.epochs))
