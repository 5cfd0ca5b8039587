"""Prints what the evaluation adds at the end of a training, for trials of a sweep and where it is closer.

    python -m experiments.evaluation_cost [--repeats 5]

The logits are drawn at random, right for most images: the cost depends on their number. A new run store is
filled as a run fills one. The first call of a process is shown apart, as it imports modules. Processor
seconds hardly depend on what else runs on the machine, seconds of wall clock do.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from harness.config.schema import TrackingConfig
from harness.data.splits import ImageArrays
from harness.tracking.store import RunStore, open_store
from harness.training import train  # noqa: F401 - what a trial's process has imported before it evaluates
from harness.training.evaluate import evaluate_logits
from harness.training.record_evaluation import look_closely, record_evaluation

IMAGES = 5000
CASES = (("the validation split of CIFAR-10", 10), ("a data set of many classes", 1000))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="harness-evaluation-") as folder:
        store = open_store(TrackingConfig(dir=str(Path(folder) / "mlruns")))
        for what, num_classes in CASES:
            logits, arrays = _answers(num_classes)
            names = tuple(f"class {number}" for number in range(num_classes))
            print(f"{what}: {IMAGES:,} images, {num_classes:,} classes")
            for kind, closely in (("every trial", False), ("with all curves and pages", True)):
                first, *others = (
                    _cost(lambda: _evaluate(store, logits, arrays, names, closely))  # noqa: B023
                    for _ in range(options.repeats + 1)
                )
                for unit, place in (("processor s", 0), ("wall clock s", 1)):
                    later = [cost[place] for cost in others]
                    spread = f"n={len(later)}, {min(later):.2f} to {max(later):.2f}"
                    print(
                        f"  {kind:<26} {unit:<12}  first {first[place]:5.2f}, then median "
                        f"{statistics.median(later):5.2f} ({spread})"
                    )
    return 0


def _answers(num_classes: int) -> tuple[np.ndarray, ImageArrays]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, IMAGES)
    skill = 2.9 if num_classes == 10 else 4.4
    logits = rng.normal(size=(IMAGES, num_classes)) + skill * np.eye(num_classes)[labels]
    images = np.zeros((1, 8, 8, 3), np.uint8)  # not looked at
    return logits.astype(np.float32), ImageArrays(images, labels, np.arange(IMAGES), "0" * 64)


def _evaluate(
    store: RunStore, logits: np.ndarray, arrays: ImageArrays, names: tuple[str, ...], closely: bool
) -> None:
    tracker = store.start_run("cost", "evaluation cost", {})
    evaluation = evaluate_logits(logits, arrays, names, "val")
    record_evaluation(tracker, evaluation)
    if closely:
        look_closely(tracker, evaluation)


def _cost(work: Callable[[], None]) -> tuple[float, float]:
    """Return processor seconds and seconds of wall clock."""
    started = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - started[0], time.perf_counter() - started[1]


if __name__ == "__main__":
    raise SystemExit(main())
