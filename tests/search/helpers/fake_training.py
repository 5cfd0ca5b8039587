"""Stands in for training in a trial's own process: fast, resumable, and misbehaving on request.

It does what `harness.training.train` does, in the same order: an epoch is recorded, then reported, then
checkpointed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.config.schema import RunConfig
from harness.errors import DataError, DivergedError
from harness.search.study import keys
from harness.search.trial import run as trial
from harness.search.trial.attempt import Attempt
from harness.tracking import Tracker, names
from harness.training.result import EpochReport, RunResult
from tests.search.helpers.behaviour import Behaviour, account, note

GIVEN_DEVICE = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # the harness clears it where there is no card

PRELOAD = [  # for a fork server of trials that train nothing: neither Lightning nor timm
    "harness.training.devices.machine",
    "harness.tracking.store",
    "mlflow.store.tracking.sqlalchemy_store",
    "optuna.storages._rdb.storage",
    "sqlalchemy.dialects.sqlite",
    "harness.search.executors.local",  # or every trial would import it
    "tests.search.helpers.fake_training",
]


def run_trial(spec_path: str) -> int:
    """Run a spec as `harness.search.trial.run` does, with the fake training."""
    folder = Path(spec_path).parent
    behaviour = Behaviour.of(folder.parents[2])
    behaviour.apply()
    if behaviour.fault_of(folder)[0] == "opened" and not account(folder):
        _die_before_noting_the_run(folder)
    return trial.run(spec_path, train=fake_train)


def _die_before_noting_the_run(folder: Path) -> None:
    def die(attempt: object, notes: Mapping[str, object]) -> None:
        if keys.RUN_ID in notes:
            note(folder, "opened")
            os.kill(os.getpid(), signal.SIGKILL)

    Attempt._note = die  # type: ignore[method-assign]


def fake_train(
    config: RunConfig,
    *,
    tracker: Tracker,
    checkpoint_dir: Path,
    on_epoch: Callable[[EpochReport], str],
    stop_requested: Callable[[], bool],
) -> RunResult:
    run = _Run(config, tracker, checkpoint_dir)
    try:
        return run.train(on_epoch, stop_requested)
    except BaseException:
        tracker.finish("FAILED")
        raise


class _Run:
    def __init__(self, config: RunConfig, tracker: Tracker, folder: Path) -> None:
        self.config, self.tracker, self.folder = config, tracker, folder
        self.number = int(folder.name.rpartition("-")[2])
        self.behaviour = Behaviour.of(Path(config.tracking.dir))
        note(folder, f"start {os.getpid()}")
        (folder / "device.txt").write_text(GIVEN_DEVICE)
        self.num_starts = sum(line.startswith("start") for line in account(folder))
        last = folder / "last.ckpt"
        self.scores: list[float] = json.loads(last.read_text()) if last.is_file() else []

    def train(self, on_epoch: Callable[[EpochReport], str], stop_requested: Callable[[], bool]) -> RunResult:
        max_epochs = self.config.trainer.max_epochs
        self._fault("start")
        for epoch, score in enumerate(self.scores):
            self.tracker.log_epoch(epoch, _metrics(score))
        for epoch in range(len(self.scores), max_epochs):
            self._misbehave()
            if self._was_stopped(epoch, stop_requested):
                self.tracker.finish("KILLED")
                return self._result("interrupted", None)
            self.scores.append(self._score(epoch))
            self.tracker.log_epoch(epoch, _metrics(self.scores[-1]))
            decision = on_epoch(EpochReport(epoch, max_epochs, _metrics(self.scores[-1])))
            self._checkpoint(epoch, stop_requested)
            if decision == "prune":
                return self._ended("pruned")
        return self._ended("finished")

    def _was_stopped(self, epoch: int, stop_requested: Callable[[], bool]) -> bool:
        hangs = epoch == 1 and self.number in self.behaviour.hang
        is_slow = epoch == 1 and self.number in self.behaviour.slow
        until = time.monotonic() + (60.0 if is_slow or hangs else self.behaviour.pace)
        if epoch == 1:
            self._fault("epoch")
        while time.monotonic() < until:
            time.sleep(0.01)
            if not hangs and stop_requested():
                return True
        return False

    def _checkpoint(self, epoch: int, before_replace: Callable[[], object]) -> None:
        partial, content = self.folder / f".last.ckpt.{os.getpid()}.partial", json.dumps(self.scores)
        if epoch == 1:
            self._fault("report")
            partial.write_text(content[: len(content) // 2])
            self._fault("checkpoint")
        partial.write_text(content)
        before_replace()
        partial.replace(self.folder / "last.ckpt")
        note(self.folder, f"epoch {epoch}")

    def _score(self, epoch: int) -> float:
        level = self.behaviour.scores.get(str(self.number))
        best = 0.5 + self.config.optim.lr * 10 if level is None else float(level)
        return best * (1 - 0.1 / (epoch + 1))

    def _fault(self, moment: str) -> None:
        when, number = self.behaviour.fault_of(self.folder)
        if moment == when and self.num_starts == 1:
            os.kill(os.getpid(), number)

    def _misbehave(self) -> None:
        if self.num_starts <= self.behaviour.die.get(str(self.number), 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.num_starts <= self.behaviour.lose_worker.get(str(self.number), 0):
            raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
        if self.config.data.batch_size >= self.behaviour.memory:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        if self.number in self.behaviour.fail:
            raise DataError("the disk is full of cats")
        if self.number in self.behaviour.diverge:
            raise DivergedError("the loss became NaN in epoch 1")
        if self.number in self.behaviour.bug:
            raise ZeroDivisionError("a bug")

    def _ended(self, status: Any) -> RunResult:
        (self.folder / "best.ckpt").write_text("weights")
        self.tracker.set_tags({names.CHECKPOINT: str((self.folder / "best.ckpt").resolve())})
        self.tracker.log_summary({"run_seconds": 0.5})
        self.tracker.finish("FINISHED")
        self._fault("end")
        return self._result(status, self.folder / "best.ckpt")

    def _result(self, status: Any, checkpoint: Path | None) -> RunResult:
        best = max(self.scores, default=0.0)
        return RunResult(
            run_id=self.tracker.run_id,
            status=status,
            score=best,
            best_epoch=self.scores.index(best) if self.scores else -1,
            metrics=_metrics(best),
            checkpoint=checkpoint,
            seconds=0.5,
            costs={
                "params_millions": 0.5,
                "latency_ms": self._latency_ms(),
                "train_seconds": 0.5,
                "train_images": float((self.config.data.samples_per_epoch or 0) * len(self.scores)),
            },
        )

    def _latency_ms(self) -> float:
        return self.behaviour.latency_ms.get(str(self.number), 1.0)


def _metrics(score: float) -> dict[str, float]:
    return {"val/accuracy": score, "val/loss": 1 - score}


if __name__ == "__main__":  # as executors that start a command line do
    sys.exit(run_trial(sys.argv[1]))
