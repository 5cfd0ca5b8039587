"""`harness train` on several devices: one process's output, and one Ctrl-C for all."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SMALL = (
    "data=digits",
    "model=lenet",
    "data.max_train_samples=300",
    "data.batch_size=32",
    "trainer.devices=2",
    "evaluation.pictures=none",
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("made_store")]


# As where there is CUDA: the ranks are fresh processes, in which libraries start threads before we can.
SPAWNED = (
    "import sys; from harness.training.devices import launch_ranks; "
    "launch_ranks.start_method = lambda: 'spawn'; from harness.__main__ import run; sys.exit(run())"
)
FORKED = "import sys; from harness.__main__ import run; sys.exit(run())"


def start(*more: str, program: str = FORKED) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, "train", *SMALL, "tracking.log_model=false", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_it_prints_and_records_once() -> None:
    process = start("trainer.max_epochs=2")
    output, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    starts = [line.split()[0] for line in output.splitlines()]
    assert starts == ["epoch", "epoch", "best:", "run", "next:"]
    assert messages.count("machine:") == 1


@pytest.mark.parametrize("program", [FORKED, SPAWNED], ids=["forked", "spawned"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_interrupts_all(number: int, code: int, program: str) -> None:
    process = start("trainer.max_epochs=1000", program=program)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1/1000")
    process.send_signal(number)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == code, messages
    assert "death signal" not in messages
    assert messages.count("interrupted; to go on: harness train --resume") == 1
    assert "Traceback" not in messages


def test_a_mistake_that_all_notice_is_one_line() -> None:
    process = start("model.image_size=8")
    output, messages = process.communicate(timeout=300)
    assert (process.returncode, output) == (2, "")
    assert messages.strip().splitlines()[-1].startswith("error: model.image_size=8 is too small for lenet")
    assert "Traceback" not in messages
