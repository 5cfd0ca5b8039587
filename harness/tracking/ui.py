"""MLflow's web interface over the run store, on this machine only: `harness ui`.

The server is a process of its own: `mlflow server` with the application in `ui_app.py`. It reads a pipe whose
other end only this process holds, so it ends with this process, even if that is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.config.schema import TrackingConfig
from harness.credentials import shown
from harness.errors import TrackingError
from harness.tracking.choice import newest_sweep
from harness.tracking.runs import RunRecord
from harness.tracking.store import RunStore, open_store
from harness.tracking.ui_app import ENDS_WITH_STDIN, WITH_ASSISTANT
from harness.tracking.views import CHARTS, MODEL_TRAINING, trials_page

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
LOG_FILE = "ui.log"  # under the folder of runs: what the server prints


@dataclass(frozen=True)
class UiAddresses:
    """The addresses of the pages to open in a browser."""

    home: str
    sweep: str | None  # the newest sweep's run page
    trials: str | None  # its trials, the best first
    charts: str | None  # their scores, curves and images side by side

    def to_text(self) -> str:
        """Return one line per address."""
        lines = [f"MLflow        {self.home}"]
        if self.sweep:
            lines += [f"newest sweep  {self.sweep}", f"its trials    {self.trials}"]
            lines += [f"their charts  {self.charts}"]
        return "\n".join(lines)


def ui_addresses(base: str, sweep: RunRecord | None) -> UiAddresses:
    """Return the pages of MLflow 3's interface at `base`, such as ``http://127.0.0.1:5000``."""
    home = f"{base.rstrip('/')}/#/experiments"
    if sweep is None:
        return UiAddresses(f"{home}?{MODEL_TRAINING}", None, None, None)
    runs = f"{home}/{sweep.experiment_id}/runs"
    trials = f"{runs}?{trials_page(sweep.run_id, sweep.tags)}"
    return UiAddresses(
        f"{home}?{MODEL_TRAINING}",
        f"{runs}/{sweep.run_id}?{MODEL_TRAINING}",
        trials,
        f"{trials}&{CHARTS}",
    )


def serve(
    tracking: TrackingConfig,
    port: int,
    host: str = "127.0.0.1",
    *,
    assistant: bool = False,
    show: Callable[[str], None] = print,
) -> int:
    """Serve the interface until Ctrl-C, showing its addresses as soon as it answers.

    Args:
        assistant: also serve MLflow's assistant, which runs commands on this machine for every client on it.

    Returns:
        The exit code: 0, or the server's own if it ends by itself.

    Raises:
        TrackingError: the port is taken, or the server does not start.
    """
    store = open_store(tracking)
    sweep = newest_sweep(tracking)
    if not store.is_local:  # the store is a server, which has pages of its own
        show(ui_addresses(shown(store.uri), sweep).to_text())
        return 0
    _check_port(host, port)
    base = f"http://{host}:{port}"
    log = store.directory / LOG_FILE
    with log.open("wb") as messages:
        server = subprocess.Popen(
            server_command(store, host, port),
            env=os.environ | server_environment(store, assistant=assistant),
            stdin=subprocess.PIPE,
            stdout=messages,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(server, base, log)
        show(f"{ui_addresses(base, sweep).to_text()}\nCtrl-C ends it.")
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)


def server_command(store: RunStore, host: str, port: int) -> list[str]:
    """Return the command that serves `store`.

    The allowed hosts are exact; MLflow's default is a list of patterns that admits every private address.
    """
    hosts = sorted({f"{name}:{port}" for name in (host, "localhost", "127.0.0.1")})
    options = {
        "--app-name": "harness",
        "--default-artifact-root": store.artifact_uri,
        "--host": host,
        "--port": str(port),
        "--workers": "1",
        "--allowed-hosts": ",".join(hosts),
    }
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *(part for option in options.items() for part in option),
    ]


def server_environment(store: RunStore, *, assistant: bool = False) -> dict[str, str]:
    """Return the server's settings: no job runner, no telemetry, and the store's address.

    The store's address may hold a password, so it is not on the command line, which every user of this
    machine can read.
    """
    return {
        "MLFLOW_BACKEND_STORE_URI": store.uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        ENDS_WITH_STDIN: "1",
        WITH_ASSISTANT: "1" if assistant else "0",
    }


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise TrackingError(
                f"port {port} of {host} cannot be used ({error}): choose another with --port"
            ) from error


def _wait_until_healthy(server: subprocess.Popen[bytes], base: str, log: Path) -> None:
    # Without the environment's proxy, which cannot reach this machine.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise TrackingError(f"the MLflow server ended with code {server.returncode}: see {log}")
        try:
            with direct.open(f"{base}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TrackingError(
        f"the MLflow server did not answer at {base} within {START_TIMEOUT_S:.0f} s: see {log}"
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, which share its process group."""
    for number, patience_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, STOP_TIMEOUT_S)):
        try:
            os.killpg(server.pid, number)
            server.wait(patience_s)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
