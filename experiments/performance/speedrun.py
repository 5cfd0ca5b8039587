"""`make speedrun`: train the speed record's recipe with several seeds, one after another, and print the cost.

To be comparable across machines, the cost is a ratio: the operations that the machine could have computed in
that time (wall seconds × its rate of matrix products in the run's precision) ÷ the operations of the
published run.

If the command is repeated, seeds that have finished are read back, and one that was interrupted is resumed.
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
from harness.tracking.address import store_exists
from harness.tracking.runs import RunRecord, find_runs
from harness.tracking.store import open_store
from harness.tracking.tracker import flatten
from harness.training.callbacks import LAST, history_in
from harness.training.checkpoints.checkpoint import load_raw
from harness.training.devices.machine import Machine, prepare_process, resolve_machine

RESULTS = Path(__file__).with_name("speedrun.json")
RECORD_FLOP = 0.29e15  # of the published run: 8 epochs of 50,000 images, forward and backward
PARTS = ("data", "model", "finetune", "augment", "optim", "trainer")  # equal in all runs of a recipe
SECONDS, FLOPS = "speedrun/seconds", "speedrun/matmul_flops"  # metrics of a finished run
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class SpeedRun:
    """One finished run of the recipe."""

    seed: int
    run_id: str
    test_accuracy: float  # with the recipe's test-time augmentation
    test_accuracy_no_tta: float
    seconds: float  # wall time of the process: imports, training, evaluation, recording; resumed epochs too
    matmul_flops: float  # per second, the mean of before and after

    @property
    def ratio(self) -> float:
        """The operations that the machine could have computed in that time ÷ those of the published run."""
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
        code = _train(config, seed, options.overrides, machine)
        if code != os.EX_OK:
            return code
        runs.append(_read(_recorded(config, seed, options.overrides), seed))
        print(describe(runs, machine), flush=True)
        output = options.output or (None if options.overrides else RESULTS)  # overrides change the recipe
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


def _train(config: RunConfig, seed: int, overrides: Sequence[str], machine: Machine) -> int:
    """Train with a seed, or resume that run, and record its cost in it; return the exit code."""
    run = _recorded(config, seed, overrides)
    if run is not None and SECONDS in run.metrics:
        print(f"seed {seed} is run {run.run_id}, which has finished; delete it in `make ui` to repeat it")
        return os.EX_OK
    command = ["recipe=speedrun", f"tracking.run_name={_run_name(seed)}", *overrides, f"seed={seed}"]
    earlier = 0.0
    if run is not None and run.status != "FINISHED":
        command = ["--resume", run.run_id, "--mlruns", config.tracking.dir]
        earlier = _epoch_seconds(Path(config.tracking.dir) / "checkpoints" / run.run_id)
    dtype = DTYPES[machine.precision]
    before = matmul_flops(machine.device, dtype)
    started = time.perf_counter()
    code = subprocess.call([sys.executable, "-m", "harness", "train", *command])
    seconds = earlier + time.perf_counter() - started
    if code == os.EX_OK:
        flops = (before + matmul_flops(machine.device, dtype)) / 2
        run = _recorded(config, seed, overrides)
        assert run is not None, "a run that has ended well is in the store"
        tracker = open_store(config.tracking).reopen_run(run.run_id)
        tracker.log_summary({SECONDS: seconds, FLOPS: flops})
    return code


def _read(run: RunRecord | None, seed: int) -> SpeedRun:
    assert run is not None, "a run that has ended well is in the store"
    return SpeedRun(
        seed=seed,
        run_id=run.run_id,
        test_accuracy=run.metrics["test/accuracy"],
        test_accuracy_no_tta=run.metrics["test/accuracy_no_tta"],
        seconds=run.metrics[SECONDS],
        matmul_flops=run.metrics[FLOPS],
    )


def _run_name(seed: int) -> str:
    return f"speedrun-seed{seed}"


def _recorded(config: RunConfig, seed: int, overrides: Sequence[str]) -> RunRecord | None:
    """Return the newest run with this seed and configuration, finished or not."""
    if not store_exists(config.tracking):
        return None
    asked = compose_run(["recipe=speedrun", *overrides, f"seed={seed}"]).to_dict()
    wanted = flatten({part: asked[part] for part in PARTS})
    runs = find_runs(config.tracking, filter_string=f"attributes.run_name = '{_run_name(seed)}'")
    same = [run for run in runs if wanted.items() <= run.params.items()]
    return same[-1] if same else None


def _epoch_seconds(checkpoints: Path) -> float:
    """Return the seconds of the epochs that an interrupted run has finished and will not repeat."""
    last = checkpoints / LAST
    if not last.is_file():
        return 0.0
    return sum(metrics["epoch_seconds"] for metrics in history_in(load_raw(last)))


if __name__ == "__main__":
    sys.exit(main())
