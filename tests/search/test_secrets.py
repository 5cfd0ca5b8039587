"""The password of a sweep's database stands in nothing that is written or shown but its trials' specs."""

from __future__ import annotations

import io
import json
import stat
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments.scale.postgres import Server
from harness.config.compose import compose_sweep
from harness.config.schema import TrackingConfig
from harness.search.sweep import run_sweep
from harness.tracking.runs import find_runs
from tests.search.conftest import SmallSweep


def sweep_with_password(
    sweep: SmallSweep, password: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Train a trial for real, as the command line does, then look for the password everywhere."""
    assert sweep.database is not None
    assert password in sweep.database
    overrides = sweep.overrides(
        "sweep.num_trials=1", "trainer.max_epochs=1", "data.max_train_samples=100", "tracking.log_model=false"
    )
    monkeypatch.setattr(sys, "argv", ["/usr/bin/harness", "sweep", *overrides])
    output = io.StringIO()
    result = run_sweep(compose_sweep(overrides, sweep.configs), console=Console(file=output, width=500))
    assert [row.state for row in result.rows] == ["complete"], output.getvalue()

    written = [path for path in sweep.runs.rglob("*") if path.is_file()]
    specs = [path for path in written if path.name.startswith("spec-")]
    assert [path.name for path in written if password.encode() in path.read_bytes()] == ["spec-1.json"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in specs] == [0o600]
    assert password not in output.getvalue() + "".join(capfd.readouterr())


def recorded_commands(sweep: SmallSweep) -> list[str]:
    runs = find_runs(TrackingConfig(dir=str(sweep.runs)))
    files = [json.loads(path.read_text()) for path in sweep.runs.rglob("environment.json")]
    return [run.tags["harness.command"] for run in runs] + [content["command"] for content in files]


@pytest.mark.slow
def test_a_databases_password_is_written_nowhere(
    small_sweep: SmallSweep, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """SQLite has no users, but an address of it may hold what it does not look at."""
    small_sweep.database = f"sqlite:///{small_sweep.runs}/optuna.db?password=s3cretWord"
    sweep_with_password(small_sweep, "s3cretWord", monkeypatch, capfd)
    commands = recorded_commands(small_sweep)
    assert len(commands) == 4  # the parent's and the trial's, each as a tag and in a file
    assert all("password=***" in command and "sweep.num_trials=1" in command for command in commands)


@pytest.mark.integration
def test_a_servers_password_is_written_nowhere(
    small_sweep: SmallSweep,
    postgres: Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    small_sweep.database = postgres.new_database()
    sweep_with_password(small_sweep, postgres.password, monkeypatch, capfd)
    assert all(f"harness:***@127.0.0.1:{postgres.port}" in text for text in recorded_commands(small_sweep))


def test_what_a_batch_job_is_given_of_the_environment_is_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.search.executors.child_process import save_environment

    monkeypatch.setenv("PGPASSWORD", "s3cretWord")
    path = Path(save_environment(tmp_path / "spec-1.json"))
    assert json.loads(path.read_text())["PGPASSWORD"] == "s3cretWord"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
