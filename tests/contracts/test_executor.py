"""What every executor does, wherever it places a trial."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.config.compose import SweepPlan, compose_sweep
from harness.config.executor import RayExecutorConfig, SlurmExecutorConfig
from harness.search.executors.base import Executor, Placement
from tests.contracts import scripted_trial
from tests.services import require

MODULE = "tests.contracts.scripted_trial"
PATIENCE_S = 300.0
CLUSTERS = [pytest.param(kind, marks=pytest.mark.integration) for kind in ("ray", "slurm")]


@pytest.fixture(scope="module")
def plan() -> SweepPlan:
    return compose_sweep(["sweep.threads_per_trial=1", "sweep.slots=2", "data=digits"])


@pytest.fixture(scope="module", params=["local", *CLUSTERS])
def executor(request: pytest.FixtureRequest, plan: SweepPlan) -> Iterator[Executor]:
    built = build(request.param, request)
    slots = built.prepare(plan)
    assert slots.count == 2
    yield built
    built.close()


def build(kind: str, request: pytest.FixtureRequest) -> Executor:
    if kind == "local":
        from harness.search.executors.local import LocalExecutor

        return LocalExecutor(run_trial=scripted_trial.run, preload=[MODULE, LocalExecutor.__module__])
    if kind == "ray":
        require("ray")
        from harness.search.executors.ray import RayExecutor

        return RayExecutor(RayExecutorConfig(num_gpus=4), MODULE)
    require("submitit")
    request.getfixturevalue("slurm")
    from harness.search.executors.slurm import SlurmExecutor

    return SlurmExecutor(SlurmExecutorConfig(), MODULE)


Place = Callable[..., tuple[Placement, Path]]


@pytest.fixture
def place(executor: Executor, tmp_path: Path) -> Iterator[Place]:
    """Place a scripted trial; returns its placement and folder. Nothing placed outlives the test."""
    placed: list[Placement] = []

    def place_one(**spec: Any) -> tuple[Placement, Path]:
        folder = tmp_path / "sweep" / f"trial-{len(placed):04d}"
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text(json.dumps(spec))
        placed.append(executor.place(folder / "spec.json"))
        return placed[-1], folder

    yield place_one
    for placement in placed:
        placement.kill()
    end_all(executor, placed)


def end_all(executor: Executor, placements: Sequence[Placement]) -> list[int | None]:
    """Wait as the scheduler does."""
    until = time.monotonic() + PATIENCE_S
    while running := [placement for placement in placements if placement.exit_code() is None]:
        assert time.monotonic() < until, "a placement does not end"
        executor.wait(running, 1.0)
    return [placement.exit_code() for placement in placements]


def wait_until_up(executor: Executor, placement: Placement, folder: Path) -> dict[str, Any]:
    until = time.monotonic() + PATIENCE_S
    while not (folder / "up.json").is_file():
        assert time.monotonic() < until, "a placement does not start"
        assert placement.exit_code() is None, (folder / "trial.log").read_text()
        executor.wait([placement], 0.1)
    note: dict[str, Any] = json.loads((folder / "up.json").read_text())
    return note


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_the_exit_code_and_the_output_come_back(executor: Executor, place: Place) -> None:
    ends = [place(exit_code=0), place(exit_code=3), place(signal=9)]
    codes = end_all(executor, [placement for placement, _ in ends])

    assert codes == [0, 3, -9]
    for _, folder in ends:
        log = (folder / "trial.log").read_text()
        assert f"hello from {folder.name}\n" in log
        assert "a word on stderr" in log


def test_the_log_of_an_earlier_attempt_stays(executor: Executor, place: Place) -> None:
    placement, folder = place()
    (folder / "trial.log").write_text("the first attempt\n")
    end_all(executor, [placement])

    assert (folder / "trial.log").read_text().startswith("the first attempt\nhello")


def test_a_trial_is_asked_to_stop(executor: Executor, place: Place) -> None:
    placement, folder = place(lasts=600)
    wait_until_up(executor, placement, folder)
    placement.stop()

    assert end_all(executor, [placement]) == [143]
    assert "stopped" in (folder / "trial.log").read_text()


def test_what_does_not_listen_is_killed(executor: Executor, place: Place) -> None:
    placement, folder = place(lasts=600, deaf=True)
    pid = wait_until_up(executor, placement, folder)["pid"]
    placement.stop()
    placement.kill()

    assert end_all(executor, [placement]) == [-9]
    until = time.monotonic() + PATIENCE_S
    while is_running(pid):
        assert time.monotonic() < until, "the trial's process is alive"
        time.sleep(0.05)


def test_two_run_at_a_time(executor: Executor, place: Place) -> None:
    both = [place(lasts=600), place(lasts=600)]
    for placement, folder in both:
        wait_until_up(executor, placement, folder)
    while any(placement.is_pending for placement, _ in both):  # a queue is not asked all the time
        executor.wait([placement for placement, _ in both], 1.0)
    for placement, _ in both:
        assert placement.exit_code() is None
        placement.stop()

    assert end_all(executor, [placement for placement, _ in both]) == [143, 143]


def test_waiting_ends_with_the_first_of_several(executor: Executor, place: Place) -> None:
    long, folder = place(lasts=600)
    wait_until_up(executor, long, folder)
    short, _ = place(lasts=0)
    before = time.monotonic()
    executor.wait([long, short], PATIENCE_S)

    assert time.monotonic() - before < PATIENCE_S
    assert (long.exit_code(), short.exit_code()) == (None, 0)


def test_a_trial_runs_where_the_coordinator_does(
    executor: Executor, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths of the configuration and the places that the environment names hold there too."""
    note = wait_until_up(executor, *place(lasts=600))

    assert note["cwd"] == str(Path.cwd())
    assert note["environment"]["HARNESS_OFFLINE"] == "1"


def test_what_has_ended_can_be_stopped_and_killed(executor: Executor, place: Place) -> None:
    placement, _ = place()
    codes = end_all(executor, [placement])
    placement.stop()
    placement.kill()

    assert codes == [placement.exit_code()] == [0]


@pytest.mark.parametrize("executor", CLUSTERS, indirect=True)
def test_what_finds_the_cluster_full_is_pending_and_can_be_withdrawn(
    executor: Executor, place: Place
) -> None:
    """Four GPUs, which `prepare` has seen: each trial holds one."""
    running = [place(lasts=600) for _ in range(4)]
    for placement, folder in running:
        wait_until_up(executor, placement, folder)
    fifth, folder = place(lasts=600)
    executor.wait([fifth], 6.0)
    assert fifth.is_pending
    assert fifth.exit_code() is None
    fifth.stop()

    assert end_all(executor, [fifth]) == [143]
    assert not (folder / "up.json").exists()
