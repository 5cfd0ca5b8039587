"""MLflow's web interface over the run store, on this machine only."""

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

from harness.config.schema import TrackingConfig
from harness.errors import TrackingError
from harness.tracking.runs import RunRecord, newest_sweep
from harness.tracking.store import RunStore, open_store

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class UiAddresses:
    """Where to point a browser."""

    home: str
    sweep: str | None  # the newest sweep's run page
    runs: str | None  # its experiment's runs, children nested under their sweep

    def to_text(self) -> str:
        """Return one line per address."""
        lines = [f"MLflow        {self.home}"]
        if self.sweep:
            lines += [f"newest sweep  {self.sweep}", f"its trials    {self.runs}"]
        return "\n".join(lines)


def ui_addresses(base: str, sweep: RunRecord | None) -> UiAddresses:
    """Return the pages of MLflow 3's interface at `base`, such as ``http://127.0.0.1:5000``."""
    home = f"{base.rstrip('/')}/#/experiments"
    if sweep is None:
        return UiAddresses(home, None, None)
    runs = f"{home}/{sweep.experiment_id}/runs"
    return UiAddresses(home, f"{runs}/{sweep.run_id}", runs)


def serve(
    tracking: TrackingConfig, port: int, host: str = "127.0.0.1", show: Callable[[str], None] = print
) -> int:
    """Serve the interface until Ctrl-C, showing its addresses as soon as it answers.

    Returns:
        The exit code: 0, or the server's own if it ends by itself.

    Raises:
        TrackingError: the port is taken, or the server does not start.
    """
    store = open_store(tracking)
    sweep = newest_sweep(tracking)
    if not store.is_local:  # somebody serves it already
        show(ui_addresses(store.uri, sweep).to_text())
        return 0
    _check_port(host, port)
    base = f"http://{host}:{port}"
    server = subprocess.Popen(
        server_command(store, host, port), env=os.environ | server_environment(), start_new_session=True
    )
    try:
        _wait_until_healthy(server, base)
        show(ui_addresses(base, sweep).to_text() + "\nCtrl-C ends it.")
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)


def server_command(store: RunStore, host: str, port: int) -> list[str]:
    """Return the command that serves `store`; its hosts are exact, as MLflow's own defaults are patterns."""
    hosts = sorted({f"{name}:{port}" for name in (host, "localhost", "127.0.0.1")})
    options = {
        "--backend-store-uri": store.uri,
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


def server_environment() -> dict[str, str]:
    """Return the settings that keep the server to what is needed here: no job runner, no telemetry."""
    return {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
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


def _wait_until_healthy(server: subprocess.Popen[bytes], base: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise TrackingError(
                f"the MLflow server ended with code {server.returncode}: see its messages above"
            )
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TrackingError(f"the MLflow server did not answer at {base} within {START_TIMEOUT_S:.0f} s")


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
