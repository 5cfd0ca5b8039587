"""The real training in each rank of a trial, which misbehaves on request, as `fake_training` does.

`{"die": {"0": [1, 5]}}`: in trial 0's first attempt, rank 1 is killed after five batches. So for `fail` (a
bug in that rank), and `wait`, where it waits until the trial is stopped. `scores` replace its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.config.compose import compose_sweep
from harness.config.schema import RunConfig
from harness.search.executors.local import LocalExecutor
from harness.search.sweep import run_sweep
from harness.search.trial import run as trial
from harness.training.devices.collectives import current_ranks
from harness.training.devices.launch_ranks import stop_requested
from harness.training.result import EpochReport, RunResult
from harness.training.train import train


def run_trial(spec_path: str) -> int:
    return trial.run(spec_path, train=train_or_misbehave)


def train_or_misbehave(
    config: RunConfig,
    *,
    checkpoint_dir: Path,
    stop_requested: Callable[[], bool],
    on_epoch: Callable[[EpochReport], Any] | None = None,
    **how: Any,
) -> RunResult:
    path = Path(config.tracking.dir) / "behaviour.json"
    behaviour = json.loads(path.read_text()) if path.is_file() else {}
    number = str(int(checkpoint_dir.name.rpartition("-")[2]))
    score = behaviour.get("scores", {}).get(number)

    def tell(report: EpochReport) -> Any:
        assert on_epoch is not None
        metrics = {**report.metrics, "val/accuracy": score or report.metrics["val/accuracy"]}
        return on_epoch(replace(report, metrics=metrics))

    return train(
        config,
        checkpoint_dir=checkpoint_dir,
        stop_requested=_misbehaving(behaviour, number, checkpoint_dir, stop_requested),
        on_epoch=tell if on_epoch is not None else None,
        **how,
    )


def _misbehaving(
    behaviour: dict[str, Any], number: str, folder: Path, stop_asked: Callable[[], bool]
) -> Callable[[], bool]:
    rank, batches = current_ranks().rank, 0
    is_first = not (folder / f"rank-{rank}.pid").is_file()
    (folder / f"rank-{rank}.pid").write_text(str(os.getpid()))

    def after_batch() -> bool:
        nonlocal batches
        batches += 1
        for act, trials in behaviour.items():
            if is_first and trials.get(number) == [rank, batches]:
                _misbehave(act, folder / f"rank-{rank}.waits")
        return stop_asked()

    return after_batch


def _misbehave(act: str, mark: Path) -> None:
    if act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "fail":
        raise ZeroDivisionError("a bug in one rank")
    mark.touch()
    while act == "wait" and not stop_requested():
        time.sleep(0.01)


def main(config_dir: str, *overrides: str) -> int:
    executor = LocalExecutor(run_trial=run_trial)
    return run_sweep(compose_sweep(overrides, Path(config_dir)), executor=executor).exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
