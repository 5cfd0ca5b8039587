"""What `harness train` does: one run, recorded and told of, on one device or on several together."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from harness.config.schema import RunConfig
from harness.data import load_splits
from harness.tracking import Tracker
from harness.tracking.silent import SilentTracker
from harness.tracking.store import open_store
from harness.training import ranks
from harness.training.distributed import current_ranks
from harness.training.machine import check_devices, prepare_process, resolve_machine
from harness.training.result import Decision, EpochReport, RunResult
from harness.training.train import train

EXIT_OK, EXIT_INTERRUPTED = 0, 130


def run_training(config: RunConfig) -> int:
    """Train a configuration on the devices that it asks for, and return the command's exit code.

    Raises:
        HarnessError: whatever the run cannot begin or go on with.
    """
    if config.trainer.devices == 1:
        with stop_flag() as stop_requested:
            return _train(config, stop_requested)
    num_gpus = torch.cuda.device_count()
    check_devices(config.trainer.devices, resolve_machine(config.trainer).device.type, num_gpus)
    return ranks.launch(_train_in_rank, config.trainer.devices, config)


def _train_in_rank(config: RunConfig) -> int:
    return _train(config, ranks.stop_requested)


def _train(config: RunConfig, stop_requested: Callable[[], bool]) -> int:
    together = current_ranks()
    threads = config.trainer.threads
    if threads is None and not together.is_alone:
        threads = max(1, torch.get_num_threads() // together.world)
    prepare_process(threads, config.trainer.keep_memory)
    tracker = _start_run(config) if together.is_zero else SilentTracker()
    checkpoints = Path(config.tracking.dir) / "checkpoints" / together.broadcast(tracker.run_id)
    result = train(
        config,
        tracker=tracker,
        checkpoint_dir=checkpoints,
        on_epoch=print_epoch if together.is_zero else None,
        stop_requested=stop_requested,
    )
    if together.is_zero:
        _print_result(result, checkpoints)
    return EXIT_INTERRUPTED if result.status == "interrupted" else EXIT_OK


def _start_run(config: RunConfig) -> Tracker:
    experiment = config.tracking.experiment or load_splits(config.data).name  # what `auto` really got
    name = config.tracking.run_name or f"{config.model.kind}-{config.finetune.kind}"
    return open_store(config.tracking).start_run(name, experiment, {"harness.kind": "train"})


def _print_result(result: RunResult, checkpoints: Path) -> None:
    if result.status == "interrupted":
        print(f"interrupted: the last complete epoch is in {checkpoints}", file=sys.stderr)
        return
    print(
        f"best: val/accuracy {result.score:.4f} in epoch {result.best_epoch + 1}, {result.seconds:.1f} s\n"
        f"run {result.run_id}, checkpoint {result.checkpoint}\n"
        f"next: harness export --run {result.run_id}   or   make ui"
    )


def print_epoch(report: EpochReport) -> Decision:
    """Print an epoch in a line, and go on."""
    metrics = report.metrics
    print(
        f"epoch {report.epoch + 1}/{report.max_epochs}  "
        f"train {metrics['train/loss']:.4f} / {metrics['train/accuracy']:.4f}  "
        f"val {metrics['val/loss']:.4f} / {metrics['val/accuracy']:.4f}  "
        f"{metrics['epoch_seconds']:.1f} s  {metrics['images_per_second']:,.0f} images/s",
        flush=True,
    )
    return "continue"


@contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a question that answers True; the second Ctrl-C kills."""
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("stopping at the end of this batch; Ctrl-C again stops at once", file=sys.stderr)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
