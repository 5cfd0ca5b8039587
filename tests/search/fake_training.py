"""Stands in for training in a trial's own process: fast, resumable, and misbehaving on request.

A file `behaviour.json` in the folder of runs says how, as processes of a fork server share no environment
with a test:
`{"slow": [7], "die": {"0": 1}, "lose_worker": {"0": 1}, "fail": [1], "diverge": [2], "bug": [3],
"memory": 128, "scores": {"4": 0.1}, "latency_ms": {"4": 9.0}}`: which trials take a minute for their second
epoch, how often trial 0 dies or loses a process that loads its data, which trials fail, diverge or hit a bug,
from which batch size on memory runs out, and what score and latency trial 4 has.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.config.schema import RunConfig
from harness.errors import DataError, DivergedError
from harness.search import trial
from harness.tracking import Tracker
from harness.training.result import EpochReport, RunResult

PRELOAD = [  # for a fork server of trials that train nothing: neither Lightning nor timm
    "harness.training.machine",
    "harness.tracking.store",
    "mlflow.store.tracking.sqlalchemy_store",
    "optuna.storages._rdb.storage",
    "sqlalchemy.dialects.sqlite",
    "tests.search.fake_training",
]


def run_trial(spec_path: str) -> int:
    """Run a spec as `harness.search.trial.run` does, with the fake training."""
    return trial.run(spec_path, train=fake_train)


def fake_train(
    config: RunConfig,
    *,
    tracker: Tracker,
    checkpoint_dir: Path,
    on_epoch: Callable[[EpochReport], str],
    stop_requested: Callable[[], bool],
) -> RunResult:
    number = int(checkpoint_dir.name.rpartition("-")[2])
    behaviour = _behaviour(config)
    note(checkpoint_dir, f"start {os.getpid()}")
    scores = _checkpointed(checkpoint_dir)
    latency_ms = behaviour.get("latency_ms", {}).get(str(number), 1.0)
    costs = {"params_millions": 0.5, "latency_ms": latency_ms, "train_seconds": 0.5}
    for epoch in range(len(scores), config.trainer.max_epochs):
        _misbehave(behaviour, number, checkpoint_dir)
        if config.data.batch_size >= behaviour.get("memory", math.inf):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        until = time.monotonic() + (60.0 if epoch == 1 and number in behaviour.get("slow", []) else 0.01)
        while time.monotonic() < until:
            time.sleep(0.01)
            if stop_requested():
                tracker.finish("KILLED")
                return _result(tracker, "interrupted", scores, None)
        scores.append(_score(config, behaviour, number, epoch))
        (checkpoint_dir / "last.ckpt").write_text(json.dumps(scores))
        note(checkpoint_dir, f"epoch {epoch}")
        metrics = {"val/accuracy": scores[-1], "val/loss": 1 - scores[-1]}
        if on_epoch(EpochReport(epoch, config.trainer.max_epochs, metrics)) == "prune":
            return _ended(tracker, "pruned", scores, checkpoint_dir, costs)
    return _ended(tracker, "finished", scores, checkpoint_dir, costs)


def note(folder: Path, line: str) -> None:
    """Keep an account of what happened to a trial, over all its processes."""
    with (folder / "account.txt").open("a") as file:
        file.write(line + "\n")


def account(folder: Path) -> list[str]:
    return (folder / "account.txt").read_text().splitlines()


def _behaviour(config: RunConfig) -> Mapping[str, Any]:
    path = Path(config.tracking.dir) / "behaviour.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def _checkpointed(folder: Path) -> list[float]:
    last = folder / "last.ckpt"
    return list(json.loads(last.read_text())) if last.is_file() else []


def _score(config: RunConfig, behaviour: Mapping[str, Any], number: int, epoch: int) -> float:
    level = behaviour.get("scores", {}).get(str(number))
    best = 0.5 + config.optim.lr * 10 if level is None else float(level)
    return best * (1 - 0.1 / (epoch + 1))


def _misbehave(behaviour: Mapping[str, Any], number: int, folder: Path) -> None:
    starts = sum(line.startswith("start") for line in account(folder))
    if starts <= behaviour.get("die", {}).get(str(number), 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if starts <= behaviour.get("lose_worker", {}).get(str(number), 0):
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    if number in behaviour.get("fail", []):
        raise DataError("the disk is full of cats")
    if number in behaviour.get("diverge", []):
        raise DivergedError("the loss became NaN in epoch 1")
    if number in behaviour.get("bug", []):
        raise ZeroDivisionError("a bug")


def _ended(
    tracker: Tracker, status: Any, scores: list[float], folder: Path, costs: dict[str, float]
) -> RunResult:
    (folder / "best.ckpt").write_text("weights")
    tracker.finish("FINISHED")
    return replace(_result(tracker, status, scores, folder / "best.ckpt"), costs=costs)


def _result(tracker: Tracker, status: Any, scores: list[float], checkpoint: Path | None) -> RunResult:
    best = max(scores, default=0.0)
    return RunResult(
        run_id=tracker.run_id,
        status=status,
        score=best,
        best_epoch=scores.index(best) if scores else -1,
        metrics={"val/accuracy": best, "val/loss": 1 - best},
        checkpoint=checkpoint,
        seconds=0.5,
    )
