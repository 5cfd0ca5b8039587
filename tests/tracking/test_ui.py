from __future__ import annotations

import socket
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
    sweep = cast(Any, SimpleNamespace(experiment_id="7", run_id="abc"))
    addresses = ui_addresses("http://127.0.0.1:5000/", sweep)
    assert addresses.sweep == "http://127.0.0.1:5000/#/experiments/7/runs/abc"
    assert addresses.runs == "http://127.0.0.1:5000/#/experiments/7/runs"
    assert addresses.sweep in addresses.to_text()
    assert ui_addresses("http://h:1", None).to_text().splitlines() == [
        "MLflow        http://h:1/#/experiments"
    ]


def test_the_server_is_closed_to_other_hosts(store: RunStore) -> None:
    command = server_command(store, "127.0.0.1", 5000)
    hosts = command[command.index("--allowed-hosts") + 1].split(",")
    assert set(hosts) == {"127.0.0.1:5000", "localhost:5000"}
    assert command[command.index("--backend-store-uri") + 1] == store.uri
    assert server_environment()["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


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
    with pytest.raises(TrackingError, match="ended with code 1"):
        serve(tracking, free_port())


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
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0  # nobody is left behind
    assert not (Path(tracking.dir) / "spool").exists()
