"""The command `harness train`: one run, on one device or on several together, printed and recorded.

`harness.cli`, `harness.api` and `resume_run.py` call `run_training`; read on in `train.py`.
"""

from __future__ import annotations

import functools
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from harness.analysis.layout import without_tta
from harness.config.schema import RunConfig
from harness.data import load_splits, remember_auto, resolve_auto
from harness.errors import TrackingError
from harness.signals import EXIT_INTERRUPTED, StopSignals, leave_at_once
from harness.tracking import Tracker
from harness.tracking.readings import count_readings, describe_reading
from harness.tracking.runs import get_run
from harness.tracking.store import open_store
from harness.tracking.tracker import SilentTracker
from harness.training.devices import launch_ranks
from harness.training.devices.collectives import current_ranks
from harness.training.devices.machine import check_devices, prepare_process, resolve_machine
from harness.training.result import Decision, EpochReport, RunResult
from harness.training.train import train

EXIT_OK = 0


def run_training(config: RunConfig, run_id: str | None = None) -> tuple[int, RunResult | None]:
    """Train a configuration on the devices that it asks for, print its epochs, and record it.

    Args:
        run_id: the run to resume; None starts a new one.

    Returns:
        The command's exit code, and the result. The result is None if several ranks trained and rank 0 ended
        without one, for example because a rank was killed.

    Raises:
        HarnessError: the run cannot begin, or cannot go on.
    """
    config.finetune.check_installed()
    if config.trainer.devices == 1:
        with StopSignals(answer_signal) as signals:
            result = _train(config, run_id, lambda: signals.count > 0)
        return _exit_code(result), result
    num_gpus = torch.cuda.device_count()
    check_devices(config.trainer.devices, resolve_machine(config.trainer).device.type, num_gpus)
    with tempfile.TemporaryDirectory(prefix="harness-train-") as folder:
        of_rank_0 = Path(folder) / "result"
        code = launch_ranks.launch(_train_in_rank, config.trainer.devices, config, run_id, of_rank_0)
        return code, pickle.loads(of_rank_0.read_bytes()) if of_rank_0.is_file() else None


def _train_in_rank(config: RunConfig, run_id: str | None, path: Path) -> int:
    result = _train(config, run_id, launch_ranks.stop_requested)
    if current_ranks().is_zero:
        path.write_bytes(pickle.dumps(result))
    return _exit_code(result)


def _exit_code(result: RunResult) -> int:
    return EXIT_INTERRUPTED if result.status == "interrupted" else EXIT_OK


def _train(config: RunConfig, run_id: str | None, stop_requested: Callable[[], bool]) -> RunResult:
    together = current_ranks()
    threads = config.trainer.threads
    if threads is None and not together.is_alone:
        threads = max(1, torch.get_num_threads() // together.world_size)
    prepare_process(threads, config.trainer.keep_memory)
    found = resolve_auto(config.data).kind if together.is_zero else ""
    remember_auto(config.data, together.broadcast(found))
    monitor = config.trainer.monitor.metric
    tracker = _start_run(config, run_id) if together.is_zero else SilentTracker()
    folder = Path(config.tracking.dir) / "checkpoints" / together.broadcast(tracker.run_id)
    with sole_process(folder) if together.is_zero else nullcontext():
        result = train(
            config,
            tracker=tracker,
            checkpoint_dir=folder,
            on_epoch=functools.partial(print_epoch, monitor=monitor) if together.is_zero else None,
            stop_requested=stop_requested,
            closely=True,
        )
    if together.is_zero:
        _print_result(result, monitor)
        if config.evaluate_test and result.status != "interrupted":
            _print_test(config, result.run_id)
    return result


def _start_run(config: RunConfig, run_id: str | None) -> Tracker:
    experiment = config.tracking.experiment or load_splits(config.data).name  # data=auto is resolved
    name = config.tracking.run_name or f"{config.model.kind}-{config.finetune.kind}"
    return open_store(config.tracking).start_run(name, experiment, {"harness.kind": "train"}, run_id=run_id)


@contextmanager
def sole_process(folder: Path) -> Iterator[None]:
    """Hold a lock on the run's folder, so that no second process trains the same run."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise TrackingError(f"run {folder.name} is being trained by another process: let it end") from None


def _print_result(result: RunResult, monitor: str) -> None:
    if result.status == "interrupted":
        print(f"interrupted; to go on: harness train --resume {result.run_id}", file=sys.stderr)
        return
    plain = without_tta(result.metrics, "val")
    score = f"best: {monitor} {result.score:.4f}{plain} in epoch"
    kept = score if monitor in result.metrics else "kept: epoch"
    print(
        f"{kept} {result.best_epoch + 1}, {result.seconds:.1f} s\n"
        f"run {result.run_id}, checkpoint {result.checkpoint}\n"
        f"next: harness export --run {result.run_id}   or   make ui"
    )


def _print_test(config: RunConfig, run_id: str) -> None:
    """Print the run's accuracy on the test split, and how often the split was read for it."""
    try:
        run = get_run(config.tracking, run_id)
    except TrackingError as error:  # the store is away, and the record waits on disk
        print(f"the test split was read; how often is not known: {error}")
        return
    metric = "test/mAP" if config.is_multilabel else "test/accuracy"
    if (score := run.results.get(metric)) is not None:
        number = count_readings(run.tags)
        plain = without_tta(run.results, "test")
        print(f"{metric} {score:.4f}{plain} ({describe_reading(number, number, 'run')})")


def print_epoch(report: EpochReport, monitor: str = "val/accuracy") -> Decision:
    """Print an epoch's metrics in one line, the monitored one among them; return "continue"."""
    metrics = report.metrics
    # Loss and accuracy; of multi-label images, of training the loss alone, and of validation loss and mAP.
    shown = "mAP" if "val/mAP" in metrics else "accuracy"
    is_shown = monitor in ("val/loss", f"val/{shown}") or monitor not in metrics
    watched = "" if is_shown else f"{monitor} {metrics[monitor]:.4f}  "
    print(
        f"epoch {report.epoch + 1}/{report.max_epochs}  "
        f"{_loss_and(shown, 'train', metrics)}"
        f"{_loss_and(shown, 'val', metrics)}"
        f"{watched}"
        f"{metrics['epoch_seconds']:.1f} s  {metrics['images_per_second']:,.0f} images/s",
        flush=True,
    )
    return "continue"


def _loss_and(metric: str, split: str, metrics: Mapping[str, float]) -> str:
    if f"{split}/loss" not in metrics:
        return ""
    value = metrics.get(f"{split}/{metric}")
    name = "" if metric == "accuracy" else f"{metric} "
    other = "" if value is None else f" / {name}{value:.4f}"
    return f"{split} {metrics[f'{split}/loss']:.4f}{other}{without_tta(metrics, split)}  "


def answer_signal(number: int, count: int) -> None:
    """Say what a signal does to a training run; a second Ctrl-C ends it at once."""
    if count > 1 and number == signal.SIGINT:
        leave_at_once("left at once; a resumed run goes on after its last complete epoch")
    print("stopping at the end of this batch; Ctrl-C again stops at once", file=sys.stderr)
