"""Sweeps on a real Ray and a real Slurm: every GPU works, and what is lost is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.scale.postgres import Server
from harness.config.compose import compose_sweep
from harness.config.executor import RayExecutorConfig
from harness.errors import ConfigError, SweepError
from harness.search.sweep import SweepResult, run_sweep
from tests.search.conftest import SmallSweep
from tests.search.helpers.coordinator import build_fake_executor
from tests.services import require, wait_until
from tests.services.ray import RayCluster

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 180.0
ON_RAY = ["sweep.executor.kind=ray", "+sweep.executor.num_gpus=4", "sweep.slots=auto"]
ON_SLURM = ["sweep.executor.kind=slurm", "sweep.slots=auto"]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a coordinator in a process group of its own, of which nothing outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start_one(sweep: SmallSweep, *more: str, **environment: str) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "tests.search.helpers.coordinator", str(sweep.configs)]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(
            subprocess.Popen(
                [*program, *sweep.overrides(*more)],
                cwd=ROOT,
                text=True,
                start_new_session=True,
                env=os.environ | environment,
                **pipe,
            )
        )
        return started[-1]

    yield start_one
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def shared_sweep(small_sweep: SmallSweep, postgres: Server) -> SmallSweep:
    """A sweep whose database other machines could reach."""
    return replace(small_sweep, database=postgres.new_database())


@pytest.fixture(params=["ray", "slurm"])
def on(request: pytest.FixtureRequest) -> str:
    """A kind of executor that can be used."""
    require("ray" if request.param == "ray" else "submitit")
    if request.param == "slurm":
        request.getfixturevalue("slurm")
    return str(request.param)


def run_here(sweep: SmallSweep, *more: str) -> SweepResult:
    plan = compose_sweep(sweep.overrides(*more), sweep.configs)
    return run_sweep(plan, executor=build_fake_executor(plan.sweep.executor))


def check_all_gpus_worked(sweep: SmallSweep, num_trials: int) -> None:
    assert [row.state for row in sweep.rows()] == ["complete"] * num_trials
    given = [(sweep.trial_folder(number) / "device.txt").read_text() for number in range(num_trials)]
    assert set(given) == {"0", "1", "2", "3"}


def wait_for_epoch(sweep: SmallSweep, number: int) -> None:
    account = sweep.trial_folder(number) / "account.txt"
    wait_until(
        lambda: account.is_file() and "epoch 0" in account.read_text(),
        f"trial {number}",
        sweep.trial_folder(number) / "trial.log",
        PATIENCE_S,
    )


def test_eight_trials_use_all_four_gpus_of_a_local_ray(small_sweep: SmallSweep, start: Start) -> None:
    require("ray")
    process = start(small_sweep, "sweep.num_trials=8", *ON_RAY)
    output = process.communicate(timeout=600)[0]

    assert process.returncode == 0, output
    assert "4 at a time" in output
    check_all_gpus_worked(small_sweep, 8)


def test_eight_trials_use_all_four_gpus_of_slurm(shared_sweep: SmallSweep, slurm: Path) -> None:
    require("submitit")
    run_here(shared_sweep, "sweep.num_trials=8", *ON_SLURM)

    check_all_gpus_worked(shared_sweep, 8)


def test_a_file_is_no_database_for_several_machines(small_sweep: SmallSweep) -> None:
    with pytest.raises(ConfigError, match=r"must not share an SQLite file: set sweep\.storage=postgresql://"):
        run_here(small_sweep, "sweep.num_trials=8", *ON_SLURM)

    assert not (small_sweep.runs / "sweeps").exists()


def test_the_command_trains_for_real(shared_sweep: SmallSweep, on: str) -> None:
    program = [sys.executable, "-m", "harness", "sweep", "--config-dir", str(shared_sweep.configs)]
    overrides = shared_sweep.overrides(
        f"sweep.executor.kind={on}", "sweep.num_trials=1", "trainer.max_epochs=1"
    )
    done = subprocess.run(
        [*program, *overrides], cwd=ROOT, text=True, capture_output=True, timeout=600, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert [row.state for row in shared_sweep.rows()] == ["complete"]
    assert (shared_sweep.trial_folder(0) / "best.ckpt").is_file()


def test_a_sweep_runs_on_a_ray_that_was_there(
    shared_sweep: SmallSweep, start: Start, ray_cluster: RayCluster
) -> None:
    address = f"sweep.executor.address='{ray_cluster.address}'"
    token = {"RAY_AUTH_TOKEN_PATH": str(ray_cluster.token_path)}
    process = start(shared_sweep, "sweep.executor.kind=ray", f"+{address}", "sweep.num_trials=2", **token)
    output = process.communicate(timeout=600)[0]

    assert process.returncode == 0, output
    assert [row.state for row in shared_sweep.rows()] == ["complete"] * 2


def test_a_killed_coordinator_takes_the_trials_of_its_ray_along(
    small_sweep: SmallSweep, start: Start
) -> None:
    require("ray")
    small_sweep.behave(slow=[0])
    process = start(small_sweep, "sweep.num_trials=1", *ON_RAY)
    wait_for_epoch(small_sweep, 0)
    process.kill()
    process.communicate(timeout=60)

    trial = int(small_sweep.account(0)[0].split()[1])
    wait_until(lambda: not Path(f"/proc/{trial}").exists(), "the end of the trial")
    small_sweep.behave()
    result = small_sweep.run("sweep.num_trials=1")  # the same trial, on this machine
    assert [row.state for row in result.rows] == ["complete"]
    assert [line for line in small_sweep.account(0) if line.startswith("epoch")] == ["epoch 0", "epoch 1"]


def test_ctrl_c_leaves_a_sweep_that_the_same_command_ends(
    shared_sweep: SmallSweep, start: Start, on: str
) -> None:
    where = [*(ON_RAY if on == "ray" else ON_SLURM), "sweep.num_trials=1"]
    shared_sweep.behave(slow=[0])
    process = start(shared_sweep, *where)
    wait_for_epoch(shared_sweep, 0)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 130, output
    assert "trial 0 goes on after epoch 1" in output
    shared_sweep.behave()
    process = start(shared_sweep, *where)
    output = process.communicate(timeout=PATIENCE_S)[0]

    assert process.returncode == 0, output
    assert [row.state for row in shared_sweep.rows()] == ["complete"]
    assert [line for line in shared_sweep.account(0) if line.startswith("epoch")] == ["epoch 0", "epoch 1"]


def test_a_job_that_slurm_ends_is_submitted_again(
    shared_sweep: SmallSweep, slurm: Path, start: Start
) -> None:
    """What preemption and a time limit do to a job, from the coordinator's side."""
    require("submitit")
    shared_sweep.behave(slow=[0])
    process = start(shared_sweep, "sweep.num_trials=1", *ON_SLURM)
    wait_for_epoch(shared_sweep, 0)
    shared_sweep.behave()
    subprocess.run(["scancel", f"--name=harness-{shared_sweep.name}"], check=True)
    output = process.communicate(timeout=PATIENCE_S)[0]

    assert process.returncode == 0, output
    assert [row.state for row in shared_sweep.rows()] == ["complete"]
    assert sum(line.startswith("start") for line in shared_sweep.account(0)) == 2
    assert [line for line in shared_sweep.account(0) if line.startswith("epoch")] == ["epoch 0", "epoch 1"]


def test_a_ray_of_others_needs_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require("ray")
    from harness.search.executors.ray import RayExecutor

    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    executor = RayExecutor(RayExecutorConfig(address="127.0.0.1:1"))
    with pytest.raises(ConfigError, match="needs a cluster with token authentication"):
        executor.prepare(compose_sweep([]))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    with pytest.raises(SweepError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        executor.prepare(compose_sweep([]))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="needs a cluster with token authentication"):
        executor.prepare(compose_sweep([]))
