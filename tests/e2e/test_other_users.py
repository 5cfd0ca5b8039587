"""Folders and files of another user, and a folder of temporary files whose path is long."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from harness.config.sweep import SweepConfig
from harness.data.decoded_cache import FORMAT
from harness.search.database.storage import open_storage, storage_url
from harness.search.study.trials import create_study

DROPPED = "-dac_override,-dac_read_search,-fowner"  # what lets root into everybody's files
SWEEP = SweepConfig.model_validate({"space": {"optim.lr": {"type": "float", "low": 0.1, "high": 0.2}}})
TRAIN = (
    "data=digits",
    "model=lenet",
    "trainer.max_epochs=1",
    "data.max_train_samples=64",
    "data.batch_size=32",
    "evaluation.pictures=none",
)


def run_as_another(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run the harness without root's right to everybody's files; what no one may write, it cannot either."""
    prefix: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everybody's files, and there is no setpriv")
        prefix = ["setpriv", f"--bounding-set={DROPPED}"]
    command = [*prefix, sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def forbid(folder: Path, mode: str) -> None:
    subprocess.run(["chmod", "-R", mode, str(folder)], check=True)


@pytest.fixture
def others_runs(tmp_path: Path) -> Iterator[Path]:
    """A folder of runs with one sweep that everybody may read and nobody may write."""
    runs = tmp_path / "runs"
    runs.mkdir()
    create_study(open_storage(storage_url(str(runs))), "theirs", SWEEP)
    forbid(runs, "a-w")
    yield runs
    forbid(runs, "u+w")


def test_a_sweep_of_another_user_can_be_looked_at(others_runs: Path) -> None:
    looked = run_as_another(["sweep", "--status", "--mlruns", str(others_runs)])

    assert looked.returncode == 0, looked.stderr
    assert "sweep theirs: stopped, 0 trials have ended" in looked.stdout


def test_a_sweep_of_another_user_cannot_be_stopped_and_that_is_said_at_once(others_runs: Path) -> None:
    stopped = run_as_another(["sweep", "--stop", "--mlruns", str(others_runs)])

    assert stopped.returncode == 2
    assert "cannot be written by this user" in stopped.stderr
    assert len(stopped.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_lock_of_another_user_is_one_line(others_runs: Path) -> None:
    forbid(others_runs, "u+w")
    lock = others_runs / "optuna.db.create.lock"
    (others_runs / "optuna.db").unlink()
    lock.touch()
    lock.chmod(0o444)
    ran = run_as_another(["sweep", *TRAIN, "finetune=full", "--mlruns", str(others_runs)])

    assert ran.returncode == 2
    assert "cannot be opened" in ran.stderr
    assert str(lock) in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_caches_are_read_by_everybody_and_need_not_be(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    model = ("model=efficientnet_lite0", "model.image_size=32", "finetune=linear_probe", "augment=none")

    def train(name: str) -> subprocess.CompletedProcess[str]:
        folder = ("--mlruns", str(tmp_path / name), f"data.cache_dir={cache}", "tracking.log_model=false")
        return run_as_another(["train", *TRAIN, *model, *folder])

    first = train("first")
    assert first.returncode == 0, first.stderr
    forbid(cache, "a-w")
    second = train("second")
    assert second.returncode == 0, second.stderr
    assert "is another user's; set data.cache_dir" in second.stdout + second.stderr
    forbid(cache / f"digits-v{FORMAT}", "a-r")
    third = train("third")
    forbid(cache, "u+rwX")
    assert third.returncode == 2
    assert "cannot be read by this user" in third.stderr


def test_processes_meet_where_the_folder_of_temporary_files_has_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    code = (
        "from harness.data.decoding.image_files import _context\n"
        "process = _context().Process(target=print, args=('forked',))\n"
        "process.start(); process.join()\n"
    )
    environment = os.environ | {"TMPDIR": str(folder)}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )

    assert (ran.stdout, ran.returncode) == ("forked\n", 0), ran.stderr
