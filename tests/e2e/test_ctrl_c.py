"""Ctrl-C at any moment from the first: one line, exit code 130, and the same command goes on.

Python tells what it imports as it does so (`-X importtime`), in the fork server too: a test strikes when it
has seen a module for the first time, or again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness.config.schema import TrackingConfig
from harness.tracking.store import open_store

SMALL = ("data=digits", "model=lenet", "data.max_train_samples=300", "trainer.max_epochs=1")
SWEEP = ("sweep", *SMALL, "finetune=full", "sweep.num_trials=1", "sweep.evaluate_test=false", "sweep.name=s")
SWEEP += ("sweep.replicate.seeds=0",)
IMPORTED = re.compile(r"^import time:.*\| +(\S+)$")

Strike = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def strike() -> Iterator[Strike]:
    """Run a command in a process group of its own and interrupt it; returns its exit code and its lines."""
    started: list[subprocess.Popen[str]] = []

    def run(command: tuple[str, ...], at: str, times: int = 1) -> tuple[int, list[str]]:
        words = [sys.executable, "-X", "importtime", "-u", "-m", "harness", *command]
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            found = IMPORTED.match(line)
            if not line.startswith("import time:"):
                lines.append(line.rstrip())
            times -= (at in line) if found is None else (found[1] == at)
            if times == 0:
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
                break
        rest = process.communicate(timeout=300)[0].splitlines()
        return process.returncode, lines + [line for line in rest if not line.startswith("import time:")]

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def check_one_line(code: int, lines: list[str]) -> None:
    text = "\n".join(lines)
    assert code == 130, text
    assert "Traceback" not in text
    assert "Exception" not in text
    assert len(re.findall("repeat the command", text)) == 1, text


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (("compare",), "argparse"),
        (("ui",), "harness.cli.main"),
        (("train", *SMALL), "hydra.core"),
        pytest.param(("train", *SMALL), "torch._C", marks=pytest.mark.slow),
        pytest.param(("train", *SMALL), "torchvision", marks=pytest.mark.slow),
        pytest.param(("evaluate",), "mlflow", marks=pytest.mark.slow),
        pytest.param(("export",), "numpy.linalg", marks=pytest.mark.slow),
        pytest.param(SWEEP, "optuna", marks=pytest.mark.slow),
        pytest.param(SWEEP, "sqlalchemy.orm", marks=pytest.mark.slow),
        pytest.param(SWEEP, "pytorch_lightning", marks=pytest.mark.slow),
    ],
)
def test_an_import_is_left_in_one_line(strike: Strike, command: tuple[str, ...], module: str) -> None:
    check_one_line(*strike(command, module))


@pytest.mark.slow
@pytest.mark.usefixtures("made_store")
@pytest.mark.parametrize("moment", [("sweep s: 1 trials", 1), ("pytorch_lightning", 2)])
def test_a_sweep_that_has_just_begun_goes_on(strike: Strike, tmp_path: Path, moment: tuple[str, int]) -> None:
    """Its fork server imports what the trials need meanwhile, and nobody waits for that."""
    fixed = (*SWEEP, "sweep.slots=1", "sweep.threads_per_trial=1")
    check_one_line(*strike(fixed, *moment))
    assert "FAILED" not in statuses(tmp_path)

    done = subprocess.run(
        [sys.executable, "-m", "harness", *fixed], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path) == {"FINISHED"}


def statuses(folder: Path) -> set[str]:
    client = open_store(TrackingConfig(dir=str(folder / "mlruns"))).client
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return {run.info.status for run in runs}
