"""What only Slurm does: arrays, lost jobs, refusals, and what a job may use."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.config.compose import SweepPlan, compose_sweep
from harness.config.executor import SlurmExecutorConfig
from harness.errors import ConfigError, SweepError
from harness.search.executors.base import Executor, Placement
from tests.services import require, wait_until

pytestmark = pytest.mark.integration
MODULE = "tests.contracts.scripted_trial"


@pytest.fixture
def plan() -> SweepPlan:
    return compose_sweep(["data=digits", "sweep.threads_per_trial=2"])


@pytest.fixture(autouse=True)
def _clean_queue(slurm: Path) -> Iterator[None]:
    require("submitit")
    yield
    subprocess.run(["scancel", "--me"], check=False)


def build(**config: Any) -> Executor:
    from harness.search.executors.slurm import SlurmExecutor

    return SlurmExecutor(SlurmExecutorConfig(**config), MODULE)


def write_spec(folder: Path, **spec: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder / "spec.json"


def submit(executor: Executor, plan: SweepPlan, spec_path: Path) -> Placement:
    executor.prepare(plan)
    placement = executor.place(spec_path)
    executor.wait([placement], 1.0)
    return placement


def end(executor: Executor, placement: Placement) -> int | None:
    until = time.monotonic() + 120
    while placement.exit_code() is None:
        assert time.monotonic() < until
        executor.wait([placement], 1.0)
    return placement.exit_code()


def test_what_is_placed_in_one_turn_is_one_array(plan: SweepPlan, tmp_path: Path) -> None:
    executor = build()
    assert executor.prepare(plan).count == 4  # the node's GPUs
    placed = [executor.place(write_spec(tmp_path / "sweep" / f"trial-000{n}")) for n in range(3)]
    codes = [end(executor, placement) for placement in placed]

    assert codes == [0, 0, 0]
    assert len(list((tmp_path / "sweep" / "slurm").glob("*_submission.sh"))) == 1
    for number in range(3):
        log = (tmp_path / "sweep" / f"trial-000{number}" / "trial.log").read_text()
        assert f"hello from trial-000{number}" in log


def test_a_job_has_what_the_configuration_says_and_is_never_requeued(plan: SweepPlan, tmp_path: Path) -> None:
    executor = build(
        partition="main", time_minutes=30, memory_gb=0.5, setup=["export DATA=1"], options={"comment": "mine"}
    )
    placement = submit(executor, plan, write_spec(tmp_path / "sweep" / "trial-0000", lasts=600))
    show = [
        "squeue",
        "--me",
        "--noheader",
        "--Format=NumCPUs:|,MinMemory:|,TimeLimit:|,tres-per-node:|,Requeue:|",
    ]
    row = subprocess.run([*show], capture_output=True, text=True, check=True).stdout.strip()
    placement.kill()

    assert row.split("|")[:5] == ["2", "512M", "30:00", "gres:gpu:1", "0"]


def test_a_job_that_vanishes_is_a_death(
    plan: SweepPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a node that is lost: no job, no exit code, no word."""
    monkeypatch.setattr("harness.search.executors.slurm.LOST_AFTER_S", 1.0)
    executor = build()
    folder = tmp_path / "sweep" / "trial-0000"
    placement = submit(executor, plan, write_spec(folder, lasts=600))
    wait_until((folder / "up.json").is_file, "the trial", folder / "trial.log")
    subprocess.run(["scancel", "--me", "--batch", "--signal=KILL"], check=True)

    assert end(executor, placement) == -9
    assert "ended without an exit code" in (folder / "trial.log").read_text()


def test_the_queue_is_asked_once_for_all_jobs(
    plan: SweepPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.search.executors import slurm as module

    executor, asked = build(), []
    executor.prepare(plan)
    real = module._ask
    monkeypatch.setattr(module, "_ask", lambda *command: asked.append(command[0]) or real(*command))
    placed = [executor.place(write_spec(tmp_path / "sweep" / f"trial-000{n}", lasts=600)) for n in range(3)]
    executor.wait(placed, 2.0)

    assert asked == ["squeue"]


def test_a_silent_controller_is_no_death(
    plan: SweepPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.search.executors import slurm as module

    monkeypatch.setattr(module, "LOST_AFTER_S", 0.0)
    monkeypatch.setattr(module, "QUEUE_EVERY_S", 0.0)
    monkeypatch.setattr(module, "COMMAND_TIMEOUT_S", 1.0)
    executor = build()
    placement = submit(executor, plan, write_spec(tmp_path / "sweep" / "trial-0000", lasts=600))
    with monkeypatch.context() as broken:
        broken.setenv("SLURM_CONF", str(tmp_path / "nowhere.conf"))
        executor.wait([placement], 1.0)

    assert placement.exit_code() is None


@pytest.mark.parametrize(
    ("config", "error", "line"),
    [
        ({"partition": "closed"}, ConfigError, r"no node of Slurm's closed partition takes jobs"),
        ({"partition": "none"}, ConfigError, r"no node of Slurm's none partition takes jobs"),
        ({"gres": "gpu:9"}, SweepError, r"Slurm refuses the job: .*not available"),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(
    plan: SweepPlan, tmp_path: Path, config: dict[str, Any], error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line) as caught:
        submit(build(**config), plan, write_spec(tmp_path / "sweep" / "trial-0000"))

    assert "\n" not in str(caught.value)


def test_no_slurm_here_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(ConfigError, match="there is no sbatch on the PATH"):
            build()


def test_a_trial_leaves_before_its_time_is_up(plan: SweepPlan, tmp_path: Path) -> None:
    """`grace_seconds` before the limit, and up to a minute earlier, as Slurm says of its clock."""
    executor, folder = build(time_minutes=2), tmp_path / "sweep" / "trial-0000"
    placement = submit(executor, plan, write_spec(folder, lasts=600))

    assert end(executor, placement) == 143
    assert "stopped" in (folder / "trial.log").read_text()
