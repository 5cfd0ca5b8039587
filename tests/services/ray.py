"""A Ray cluster of one node that was there before the sweep, with four GPUs that are not there."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.scale.postgres import free_port
from tests.services import require, terminate, wait_until


@dataclass(frozen=True)
class RayCluster:
    """Where it is, and the file with its token."""

    address: str
    token_path: Path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    require("ray")
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # the path of a socket must be short
    cluster = RayCluster(f"127.0.0.1:{free_port()}", folder / "token")
    cluster.token_path.write_text(secrets.token_hex(32))
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(cluster.token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as in harness.search.executors.ray: loopback alone
    }
    port = cluster.address.partition(":")[2]
    options = ["--head", "--block", f"--port={port}", "--num-gpus=4", "--include-dashboard=false"]
    # Ports of workers, which would else be ten thousand in a row with that of the head perhaps among them.
    options += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder}"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: _listens(cluster.address), "Ray", log, timeout_s=120)
        yield cluster
    finally:
        terminate(process)
        shutil.rmtree(folder, ignore_errors=True)


def _listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with suppress(OSError):
        socket.create_connection((host, int(port)), 1).close()
        return True
    return False
