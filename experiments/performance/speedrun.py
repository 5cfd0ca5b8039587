"""`make speedrun`: train the record's recipe with several seeds, one after another, and say what it cost.

The price is compared across machines by what they could have computed meanwhile: wall seconds × the rate of
a matrix product in the precision of the run ÷ the operations of the published run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

import torch

from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.tracking.runs import RunRecord, find_runs
from harness.training.machine import Machine, prepare_process, resolve_machine

RECORD_FLOP = 0.29e15  # of the published run: 8 epochs of 50,000 images, forward and backward
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class SpeedRun:
    """One finished run of the recipe."""

    seed: int
    run_id: str
    accuracy: float  # of the test split, with the recipe's test-time augmentation
    accuracy_no_tta: float
    wall_seconds: float  # of the whole process: imports, training, evaluation, recording
    matmul_flops: float  # per second, the mean of before and after

    @property
    def ratio(self) -> float:
        """What the machine could have multiplied in that time, in runs of the published record."""
        return self.wall_seconds * self.matmul_flops / RECORD_FLOP


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all seeds; return the exit code of the first that fails, or 0."""
    parser = argparse.ArgumentParser(description="train the speed record's recipe with several seeds")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as of `harness train`")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="write the runs to this JSON file too")
    options = parser.parse_args(arguments)
    config = compose_run(["recipe=speedrun", *options.overrides])
    prepare_process(config.trainer.threads, config.trainer.keep_memory)
    machine = resolve_machine(config.trainer)
    runs: list[SpeedRun] = []
    for seed in options.seeds:
        before = matmul_flops(machine)
        started = time.perf_counter()
        code = subprocess.call(
            [sys.executable, "-m", "harness", "train", *_arguments(seed, options.overrides)]
        )
        wall_seconds = time.perf_counter() - started
        if code != 0:
            return code
        runs.append(_finished(config, seed, wall_seconds, (before + matmul_flops(machine)) / 2))
        print(describe(runs, machine), flush=True)
    if options.output is not None:
        options.output.write_text(
            json.dumps([asdict(run) for run in runs], indent=2) + "\n", encoding="utf-8"
        )
    return os.EX_OK


def matmul_flops(machine: Machine, size: int = 2048, repeats: int = 7) -> float:
    """Return the floating-point operations per second of a square matrix product, the median of a few."""
    matrix = torch.rand(size, size, device=machine.device).to(DTYPES[machine.precision])
    seconds = []
    for _ in range(repeats + 1):
        _synchronise(machine)
        started = time.perf_counter()
        matrix @ matrix
        _synchronise(machine)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / median(seconds[1:])  # the first one warms up


def describe(runs: Sequence[SpeedRun], machine: Machine) -> str:
    """Return a table of the runs and their means."""
    lines = [f"{'seed':>4}  test accuracy  without TTA  seconds  {machine.precision} GFLOP/s  ratio  run"]
    lines += [
        f"{run.seed:>4}  {run.accuracy:>13.2%}  {run.accuracy_no_tta:>11.2%}  {run.wall_seconds:>7,.0f}  "
        f"{run.matmul_flops / 1e9:>12,.0f}  {run.ratio:>5.2f}  {run.run_id}"
        for run in runs
    ]
    lines.append(
        f"mean of {len(runs)}: test accuracy {mean(run.accuracy for run in runs):.2%}, "
        f"{mean(run.wall_seconds for run in runs):,.0f} s, ratio {mean(run.ratio for run in runs):.2f} "
        f"(wall seconds × {machine.precision} matmul FLOP/s ÷ {RECORD_FLOP / 1e15:g} PFLOP)"
    )
    return "\n".join(lines)


def _arguments(seed: int, overrides: Sequence[str]) -> list[str]:
    return ["recipe=speedrun", f"tracking.run_name={_run_name(seed)}", *overrides, f"seed={seed}"]


def _run_name(seed: int) -> str:
    return f"speedrun-seed{seed}"


def _finished(config: RunConfig, seed: int, wall_seconds: float, flops: float) -> SpeedRun:
    run = _newest(config, _run_name(seed))
    return SpeedRun(
        seed=seed,
        run_id=run.run_id,
        accuracy=run.metrics["test/accuracy"],
        accuracy_no_tta=run.metrics["test/accuracy_no_tta"],
        wall_seconds=wall_seconds,
        matmul_flops=flops,
    )


def _newest(config: RunConfig, name: str) -> RunRecord:
    return find_runs(config.tracking, filter_string=f"attributes.run_name = '{name}'")[-1]


def _synchronise(machine: Machine) -> None:
    if machine.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
