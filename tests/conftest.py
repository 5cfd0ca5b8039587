"""What every test needs: an own place for data and runs, and never the network."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest_plugins = ["tests.services.postgres", "tests.services.ray", "tests.services.slurm"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for what it starts in the background, which is inherited: the commands that are
    # tested would never hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_places(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs go to the test's own folder; decoded data are shared by the session; no test downloads."""
    monkeypatch.setenv("HARNESS_OFFLINE", "1")
    monkeypatch.setenv("MLRUNS_DIR", str(tmp_path / "mlruns"))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_cifar10() -> Path:
    """The folder of the whole of real CIFAR-10, where a checkout lies beside it."""
    if not (SHARED_DATA / "cifar10" / "plain_text").is_dir():
        pytest.skip("real CIFAR-10 does not lie beside this checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 5 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk can only be mounted by root ({error})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
