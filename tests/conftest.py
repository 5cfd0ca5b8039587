"""What every test needs: an own place for data and runs, and never the network."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from filelock import FileLock

pytest_plugins = ["tests.services.postgres", "tests.services.ray", "tests.services.slurm"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for what it starts in the background, which is inherited: the commands that are
    # tested would never hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

FORKED_BY_TESTS = ("tests.search.helpers.calls", "tests.training.together", "tests.contracts.scripted_trial")
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_finish() -> None:
    """Let garbage collections pass over the million objects of torch, MLflow and the collected tests."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session", autouse=True)
def _one_fork_server() -> Iterator[None]:
    """Let the session's fork server import what any test forks, whichever test starts it.

    There is one for as long as the process lives. Started by a test that needs little, it would leave seconds
    of imports to every process that later tests fork.
    """
    from harness.search.executors.local import PRELOADED

    def everything(names: list[str]) -> None:
        set_preload(list(dict.fromkeys([*PRELOADED, *FORKED_BY_TESTS, *names])))

    set_preload = forkserver.set_forkserver_preload
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forkserver, "set_forkserver_preload", everything)
        yield


@pytest.fixture(scope="session")
def real_cifar10() -> Path:
    """The folder of the whole of real CIFAR-10, where a checkout lies beside it."""
    if not (SHARED_DATA / "cifar10" / "plain_text").is_dir():
        pytest.skip("real CIFAR-10 does not lie beside this checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def empty_databases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Empty databases of sweeps and runs, to be copied: it takes seconds to create them.

    All processes of a session share them. `tests/tracking/test_store.py` tests how they are created.
    """
    from harness.config.schema import TrackingConfig
    from harness.search.database.storage import open_storage, storage_url
    from harness.tracking.store import open_store

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "empty-databases"
    unfinished = folder.with_suffix(".creating")
    with FileLock(folder.with_suffix(".lock")), pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if not folder.exists():
            open_store(TrackingConfig(dir=str(unfinished)))
            open_storage(storage_url(str(unfinished)))
            unfinished.rename(folder)
    return [folder / "optuna.db", folder / "mlflow.db"]


@pytest.fixture
def made_store(empty_databases: list[Path]) -> None:
    """An empty run store at MLRUNS_DIR."""
    folder = Path(os.environ["MLRUNS_DIR"])
    folder.mkdir(parents=True)
    shutil.copy(empty_databases[1], folder)


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
