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
from statistics import mean

import torch

from experiments.performance.matmul import matmul_flops
from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.tracking.runs import RunRecord, find_runs
from harness.training.machine import Machine, prepare_process, resolve_machine

RESULTS = Path(__file__).with_name("speedrun.json")
RECORD_FLOP = 0.29e15  # of the published run: 8 epochs of 50,000 images, forward and backward
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class SpeedRun:
    """One finished run of the recipe."""

    seed: int
    run_id: str
    test_accuracy: float  # with the recipe's test-time augmentation
    test_accuracy_no_tta: float
    seconds: float  # wall time of the whole process: imports, training, evaluation, recording
    matmul_flops: float  # per second, the mean of before and after

    @property
    def ratio(self) -> float:
        """What the machine could have multiplied in that time, in runs of the published record."""
        return self.seconds * self.matmul_flops / RECORD_FLOP


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all seeds; return the exit code of the first that fails, or 0."""
    parser = argparse.ArgumentParser(description="train the speed record's recipe with several seeds")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as of `harness train`")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--output",
        type=Path,
        help=f"JSON file for the results (default: {RESULTS.name} beside this, without KEY=VALUE)",
    )
    options = parser.parse_args(arguments)
    config = compose_run(["recipe=speedrun", *options.overrides])
    prepare_process(config.trainer.threads, config.trainer.keep_memory)
    machine = resolve_machine(config.trainer)
    runs: list[SpeedRun] = []
    for seed in options.seeds:
        before = matmul_flops(machine.device, DTYPES[machine.precision])
        started = time.perf_counter()
        code = subprocess.call(
            [sys.executable, "-m", "harness", "train", *_arguments(seed, options.overrides)]
        )
        wall_seconds = time.perf_counter() - started
        if code != 0:
            return code
        runs.append(
            _finished(
                config,
                seed,
                wall_seconds,
                (before + matmul_flops(machine.device, DTYPES[machine.precision])) / 2,
            )
        )
        print(describe(runs, machine), flush=True)
        output = options.output or (None if options.overrides else RESULTS)  # another recipe is no record
        if output is not None:
            write_results(runs, output)
    return os.EX_OK


def write_results(runs: Sequence[SpeedRun], path: Path) -> None:
    """Write the runs so far; the benchmark's table reads them."""
    table = [{**asdict(run), "ratio": run.ratio} for run in runs]
    path.write_text(json.dumps({"runs": table}, indent=2) + "\n", encoding="utf-8")


def describe(runs: Sequence[SpeedRun], machine: Machine) -> str:
    """Return a table of the runs and their means."""
    lines = [f"{'seed':>4}  test accuracy  without TTA  seconds  {machine.precision} GFLOP/s  ratio  run"]
    lines += [
        f"{run.seed:>4}  {run.test_accuracy:>13.2%}  {run.test_accuracy_no_tta:>11.2%}  "
        f"{run.seconds:>7,.0f}  {run.matmul_flops / 1e9:>12,.0f}  {run.ratio:>5.2f}  {run.run_id}"
        for run in runs
    ]
    lines.append(
        f"mean of {len(runs)}: test accuracy {mean(run.test_accuracy for run in runs):.2%}, "
        f"{mean(run.seconds for run in runs):,.0f} s, ratio {mean(run.ratio for run in runs):.2f} "
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
        test_accuracy=run.metrics["test/accuracy"],
        test_accuracy_no_tta=run.metrics["test/accuracy_no_tta"],
        seconds=wall_seconds,
        matmul_flops=flops,
    )


def _newest(config: RunConfig, name: str) -> RunRecord:
    return find_runs(config.tracking, filter_string=f"attributes.run_name = '{name}'")[-1]


if __name__ == "__main__":
    sys.exit(main())
