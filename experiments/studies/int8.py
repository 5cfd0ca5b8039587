"""Measures what a run's quantised model loses and saves, and records it with the run.

`__main__.py` calls `measure` for each training of a study that asks for it; `report.py` shows the metrics.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

import harness
from harness.config.schema import TrackingConfig
from harness.export.manifest import INT8_FILE, ONNX_FILE, GraphInput
from harness.export.runners import Runner, onnx_runner
from harness.tracking.runs import RunRecord
from harness.tracking.store import open_store

FP32_ACCURACY, INT8_ACCURACY, AGREEMENT = "int8/fp32_accuracy", "int8/accuracy", "int8/agreement"
FP32_MEGABYTES, INT8_MEGABYTES = "int8/fp32_megabytes", "int8/megabytes"
SPEEDUPS = {1: "int8/speedup_batch_1", 32: "int8/speedup_batch_32"}  # fp32 seconds ÷ int8 seconds
METRICS = (
    FP32_ACCURACY, INT8_ACCURACY, AGREEMENT, FP32_MEGABYTES, INT8_MEGABYTES, *SPEEDUPS.values(),
)  # fmt: skip
PAIRS = 9  # of times, in turn; the median of their ratios is recorded
SECONDS = 0.2  # of each time, at least


def measure(run: RunRecord) -> None:
    """Export a run with its quantised model, however much that loses, and record what is measured."""
    if all(metric in run.metrics for metric in METRICS):
        return
    with tempfile.TemporaryDirectory(prefix="int8-") as folder:
        exported = harness.export_run(run.run_id, folder, int8=1.0)
        facts, path = exported.config.int8, exported.path
        assert facts is not None
        found = {
            FP32_ACCURACY: facts.fp32_accuracy,
            INT8_ACCURACY: facts.accuracy,
            AGREEMENT: facts.top1_agreement,
            FP32_MEGABYTES: (path / ONNX_FILE).stat().st_size / 1e6,
            INT8_MEGABYTES: (path / INT8_FILE).stat().st_size / 1e6,
        }
        for batch, metric in SPEEDUPS.items():
            found[metric] = _speedup(path, exported.config.input, batch)
    tracker = open_store(TrackingConfig.at()).reopen_run(run.run_id)
    tracker.log_summary(found)
    tracker.finish("FINISHED")


def _speedup(folder: Path, graph_input: GraphInput, batch: int) -> float:
    """Return fp32's time ÷ int8's: the median of ratios of times taken in turn."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, 3, graph_input.height, graph_input.width), dtype=np.uint8)
    runners = [onnx_runner(folder / name, graph_input) for name in (ONNX_FILE, INT8_FILE)]
    for run in runners:
        run(images)  # the first call allocates
    times = np.array([[_seconds(run, images) for run in runners] for _ in range(PAIRS)])
    return float(np.median(times[:, 0] / times[:, 1]))


def _seconds(run: Runner, images: np.ndarray) -> float:
    """Return the seconds of a call, the mean of as many as fill `SECONDS`."""
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < SECONDS:
        run(images)
        count += 1
    return passed / count
