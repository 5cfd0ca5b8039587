from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from experiments.scale.postgres import free_port
from harness.config.schema import TrackingConfig
from harness.errors import TrackingError
from harness.tracking import ui
from harness.tracking.store import RunStore
from harness.tracking.ui import serve, server_command, server_environment, ui_addresses


def test_addresses() -> None:
    sweep = cast(Any, SimpleNamespace(experiment_id="7", run_id="abc", tags={}))
    addresses = ui_addresses("http://127.0.0.1:5000/", sweep)
    training = "workflowType=machine_learning"
    assert addresses.sweep == f"http://127.0.0.1:5000/#/experiments/7/runs/abc?{training}"
    assert addresses.trials is not None
    assert addresses.trials.startswith(f"http://127.0.0.1:5000/#/experiments/7/runs?{training}&")
    assert addresses.charts == f"{addresses.trials}&compareRunsMode=CHART"
    assert addresses.sweep in addresses.to_text()
    assert ui_addresses("http://h:1", None).to_text().splitlines() == [
        f"MLflow        http://h:1/#/experiments?{training}"
    ]


def test_the_server_is_closed_to_other_hosts(store: RunStore) -> None:
    command = server_command(store, "127.0.0.1", 5000)
    hosts = command[command.index("--allowed-hosts") + 1].split(",")
    assert set(hosts) == {"127.0.0.1:5000", "localhost:5000"}
    assert store.uri not in command  # it may hold a password, and everybody can read a command line
    environment = server_environment(store)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == store.uri
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_a_taken_port_gets_one_line(tracking: TrackingConfig) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(TrackingError, match="choose another") as error:
            serve(tracking, other.getsockname()[1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("port", [70000, -1])
def test_no_such_port(tracking: TrackingConfig, port: int) -> None:
    with pytest.raises(TrackingError, match="cannot be used"):
        serve(tracking, port)


def test_a_server_that_dies_is_not_waited_for(
    tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui, "server_command", lambda *_: ["false"])
    with pytest.raises(TrackingError, match=r"ended with code 1: see .*ui\.log"):
        serve(tracking, free_port())


def test_the_health_check_goes_past_a_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")  # nobody listens there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(ui, "START_TIMEOUT_S", 5.0)
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running = cast(Any, SimpleNamespace(poll=lambda: None))
        ui._wait_until_healthy(running, f"http://127.0.0.1:{server.server_port}", tmp_path / "ui.log")
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_server_ends_with_the_process_that_started_it(
    tracking: TrackingConfig, store: RunStore, number: signal.Signals
) -> None:
    port = free_port()
    command = [sys.executable, "-u", "-m", "harness", "ui", "--port", str(port), "--mlruns", tracking.dir]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # else nohup's, which the command would inherit
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGHUP, before)
    with process:
        assert process.stdout is not None
        assert any("Ctrl-C ends it" in line for line in process.stdout)
        process.send_signal(number)
    deadline = time.monotonic() + 300
    while is_listening(port):
        assert time.monotonic() < deadline, "the server lives on"
        time.sleep(0.1)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_real_server_shows_the_runs(tracking: TrackingConfig, store: RunStore) -> None:
    """It answers, hands out what the direct client wrote, refuses other hosts, and ends with Ctrl-C."""
    import urllib.error
    import urllib.request

    tracker = store.start_run("sweep", "exp", {"harness.kind": "sweep", "harness.sweep": "s"})
    tracker.log_text("by the direct client", "a.txt")
    port = free_port()
    shown: list[str] = []

    def look(text: str) -> None:
        shown.append(text)
        base = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(f"{base}/get-artifact?run_id={tracker.run_id}&path=a.txt") as answer:
            shown.append(answer.read().decode())
        foreign = urllib.request.Request(f"{base}/", headers={"Host": "10.evil.example"})
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(foreign)
        shown.append(str(error.value.code))
        raise KeyboardInterrupt

    assert serve(tracking, port, show=look) == 0
    assert tracker.run_id in shown[0]
    assert shown[1:] == ["by the direct client", "403"]
    assert not is_listening(port)  # nobody is left behind
    assert list(store.spool_directory.rglob("*")) == []
