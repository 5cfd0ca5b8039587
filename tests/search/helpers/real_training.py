"""The real training in a trial's process, which keeps the fake one's account and kills itself on request."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.config.schema import RunConfig
from harness.search.trial import run as trial
from harness.training.result import EpochReport, RunResult
from tests.search.helpers.behaviour import Behaviour, account, note


def run_real_trial(spec_path: str) -> int:
    """Run a spec as `harness.search.trial.run` does; see :class:`Behaviour` for `faults`."""
    return trial.run(spec_path, train=_train)


def _train(
    config: RunConfig,
    *,
    checkpoint_dir: Path,
    on_epoch: Callable[[EpochReport], Any],
    stop_requested: Callable[[], bool],
    **others: Any,
) -> RunResult:
    from harness.training.train import train

    watch = _Watch(config, checkpoint_dir)
    watch.fault("start")

    def stop() -> bool:
        if watch.epochs_reported == 1:
            watch.fault("epoch")
        return stop_requested()

    def report(epoch: EpochReport) -> Any:
        decision = on_epoch(epoch)
        watch.report()
        return decision

    result = train(config, checkpoint_dir=checkpoint_dir, on_epoch=report, stop_requested=stop, **others)
    watch.fault("end")
    return result


class _Watch:
    def __init__(self, config: RunConfig, folder: Path) -> None:
        fault = Behaviour.of(Path(config.tracking.dir)).fault_of(folder)
        note(folder, f"start {os.getpid()}")
        is_first = sum(line.startswith("start") for line in account(folder)) == 1
        self.moment, self.signal = fault if is_first else ("never", 0)
        self.folder, self.epochs_reported = folder, 0

    def report(self) -> None:
        self.epochs_reported += 1
        note(self.folder, "reported")
        if self.epochs_reported == 2:
            self.fault("report")
            if self.moment == "checkpoint":  # with the new one written, and the old one still in its place
                os.fsync = lambda descriptor: os.kill(os.getpid(), self.signal)

    def fault(self, moment: str) -> None:
        if moment == self.moment:
            os.kill(os.getpid(), self.signal)
