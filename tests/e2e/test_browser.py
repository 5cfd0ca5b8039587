"""The MLflow UI in a real browser, opened at the addresses that `harness ui` prints."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments.scale.postgres import free_port
from harness.analysis.figures import confusion_matrix_figure
from harness.config.schema import TrackingConfig
from harness.tracking import names
from harness.tracking.store import open_store
from harness.tracking.views import sweep_view

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
QUIET += " --disable-component-update --disable-sync"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


def record_a_sweep(mlruns: Path) -> str:
    """Record a sweep of two trials; return the id of the first trial's run."""
    store = open_store(TrackingConfig(dir=str(mlruns)))
    tags = {names.KIND: "sweep", names.SWEEP: "my-sweep", names.METRIC: "val/accuracy"}
    parent = store.start_run("my-sweep", "cifar10", tags)
    parent.set_tags({names.NOTE: "**Maximize val/accuracy**"})
    store.keep_view("cifar10", sweep_view(parent.run_id, tags, ["optim.lr"]))
    trials = []
    for number in range(2):
        tags = {names.KIND: "trial", names.SWEEP: "my-sweep", names.TRIAL: str(number)}
        trial = store.start_run(f"trial-{number:04d}", "cifar10", tags, parent_run_id=parent.run_id)
        trial.log_params({"optim": {"lr": 0.125 + number}})
        for epoch in range(3):
            accuracy = 0.5 + 0.1 * epoch + 0.01 * number
            trial.log_epoch(epoch, {"val/accuracy": accuracy, "train/loss": 1.0 - 0.2 * epoch})
        trial.log_summary({"best/val/accuracy": 0.7 + 0.01 * number})
        trial.log_image(np.full((32, 32, 3), 50 * number, np.uint8), "pictures/val/examples", 0)
        trial.log_figure(confusion_matrix_figure(np.eye(2, dtype=int), ("cat", "dog")), "val/confusion.png")
        trial.finish("FINISHED")
        trials.append(trial.run_id)
    parent.finish("FINISHED")
    return trials[0]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[list[str]]:
    """`harness ui` in its own process; yields the addresses that it prints."""
    command = [sys.executable, "-u", "-m", "harness", "ui", "--port", str(free_port())]
    process = subprocess.Popen(
        [*command, "--mlruns", str(tmp_path / "mlruns")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    addresses: list[str] = []
    for line in process.stdout:
        addresses += re.findall(r"http://\S+", line)
        if "Ctrl-C" in line:
            break
    yield addresses
    process.send_signal(2)
    assert process.wait(30) == 0


def page(address: str, profile: Path) -> str:
    """Return the page as the browser shows it after its scripts have run."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET.split(), f"--user-data-dir={profile}", "--virtual-time-budget=20000"]
    return subprocess.run(
        [*command, "--dump-dom", address], capture_output=True, text=True, check=True, timeout=120
    ).stdout


def is_shown(address: str, words: list[str], profile: Path, attempts: int = 4) -> bool:
    """Return whether the page shows every word; its scripts load data at their own pace, so look again."""
    return any(
        all(word in shown for word in words) for shown in (page(address, profile) for _ in range(attempts))
    )


@pytest.fixture
def trial_run_id(tmp_path: Path) -> str:
    return record_a_sweep(tmp_path / "mlruns")


def test_the_browser_shows_the_sweep_its_trials_and_their_records(
    trial_run_id: str, server: list[str], tmp_path: Path
) -> None:
    home, sweep_page, trials_page, charts_page = server
    trial_page = f"{trials_page.partition('?')[0]}/{trial_run_id}"
    shown_on = {
        trials_page: ["trial-0000", "trial-0001", "Model training", "1.125"],  # a column of the saved view
        charts_page: [
            "Scores",
            "Curves",
            "Images",
            "Settings",
            "best/val/accuracy",
        ],  # images: when scrolled to
        sweep_page: ["my-sweep", "Maximize val/accuracy"],
        trial_page: ["my-sweep", "val/accuracy", "train/loss"],  # its parent and its metrics
        f"{trial_page}/artifacts": ["val"],
    }
    for address, words in shown_on.items():
        assert is_shown(address, words, tmp_path / "profile"), f"{address} does not show {words}"
    assert home.startswith("http://127.0.0.1:")
