"""Real services for tests: each starts on loopback in a temporary folder, and stops at the session's end.

A service whose programs are not installed skips the tests that want it, and says what is missing;
`.ci/run` installs them all.
"""

from __future__ import annotations

import importlib.util
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def require(package: str) -> None:
    """Skip where it is missing, without importing it: Ray reads its settings when it is imported."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (make setup-cluster)")


def wait_until(
    is_ready: Callable[[], bool], what: str, log: Path | None = None, timeout_s: float = 300
) -> None:
    """Wait for a service; fail with the end of its log."""
    until = time.monotonic() + timeout_s
    while not is_ready():
        if time.monotonic() > until:
            end = log.read_text()[-2000:] if log and log.is_file() else ""
            pytest.fail(f"{what} is not ready after {timeout_s:.0f} s\n{end}")
        time.sleep(0.1)


def terminate(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
