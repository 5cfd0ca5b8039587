"""A run over two processes, in a process of its own: what starts the ranks takes its signals."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from harness.config.schema import RunConfig
from harness.tracking.tracker import SilentTracker
from harness.training.devices import launch_ranks
from harness.training.devices.collectives import current_ranks
from harness.training.result import EpochReport, RunResult
from harness.training.train import train
from tests.helpers.recording_tracker import RecordingTracker

WORLD = 2
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Behaviour:
    """What happens to a run: epochs are counted from 0, what is asked from the start of this process.

    Args:
        prune_after: the epoch after which rank 0 decides that it is enough.
        act_at: `rank` does `act` the nth time that it is asked whether to stop: after each batch,
            and in rank 0 before each checkpoint too.
        act: stop (it is asked to stop), die (of SIGKILL), fail (by an exception) or wait (for a minute).
    """

    prune_after: int | None = None
    act_at: int | None = None
    rank: int = 1
    act: str = "stop"


@dataclass
class Together:
    """The process that starts the ranks of one run."""

    folder: Path
    process: BaseProcess
    pids: list[int] = field(default_factory=list)

    def end(self) -> int:
        """Wait for it, and return its exit code."""
        self.process.join(TIMEOUT_S)
        code = self.process.exitcode
        assert code is not None, "it hangs"
        return code

    def result(self) -> tuple[RunResult, RecordingTracker]:
        assert self.end() == 0, (self.folder / "log.txt").read_text()
        result, tracker = pickle.loads((self.folder / "result.pickle").read_bytes())
        return result, tracker

    def rank_pids(self) -> list[int]:
        """Wait until all ranks train, and return their process ids."""
        files = [self.folder / f"rank-{rank}.pid" for rank in range(WORLD)]
        until = time.monotonic() + TIMEOUT_S
        while not all(file.is_file() and file.read_text() for file in files):
            assert time.monotonic() < until
            assert self.process.is_alive(), (self.folder / "log.txt").read_text()
            time.sleep(0.02)
        return [int(file.read_text()) for file in files]


def start(config: RunConfig, folder: Path, behaviour: Behaviour | None = None) -> Together:
    """Start a run over two processes, to be awaited."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("rank-*.pid"):
        file.unlink()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.training.train", "tests.training.together"])
    process = context.Process(target=_start_ranks, args=(config, folder, behaviour or Behaviour()))
    process.start()
    return Together(folder, process)


def start_and_leave(config: RunConfig, folder: Path) -> None:
    """Be a coordinator that is gone as soon as its ranks train."""
    start(config, folder).rank_pids()
    os.kill(os.getpid(), signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _start_ranks(config: RunConfig, folder: Path, behaviour: Behaviour) -> None:
    with (folder / "log.txt").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    raise SystemExit(launch_ranks.launch(run_rank, WORLD, config, folder, behaviour, grace_s=60.0))


def run_rank(config: RunConfig, folder: Path, behaviour: Behaviour) -> int:
    """Train as one of the ranks, and leave rank 0's result in the folder."""
    torch.set_num_threads(1)
    here = current_ranks()
    tracker = RecordingTracker() if here.is_zero else SilentTracker()
    result = train(
        config,
        tracker=tracker,
        checkpoint_dir=folder,
        on_epoch=_decider(behaviour) if here.is_zero else None,
        stop_requested=_actor(behaviour, here.rank, folder),
    )
    if here.is_zero:
        (folder / "result.pickle").write_bytes(pickle.dumps((result, tracker)))
    return launch_ranks.EXIT_STOPPED if result.status == "interrupted" else 0


def _decider(behaviour: Behaviour) -> Callable[[EpochReport], Any]:
    return lambda report: "prune" if report.epoch == behaviour.prune_after else "continue"


def _actor(behaviour: Behaviour, rank: int, folder: Path) -> Callable[[], bool]:
    batches = 0

    def after_batch() -> bool:
        nonlocal batches
        batches += 1
        (folder / f"rank-{rank}.pid").write_text(str(os.getpid()))
        if behaviour.act_at is None or batches < behaviour.act_at or rank != behaviour.rank:
            return launch_ranks.stop_requested()
        if behaviour.act == "stop":  # whoever asks: a request stays
            return True
        if batches == behaviour.act_at:
            match behaviour.act:
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "fail":
                    raise ZeroDivisionError(f"a bug in rank {rank}")
                case "wait":
                    _wait(60.0)
        return launch_ranks.stop_requested()

    return after_batch


def _wait(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not launch_ranks.stop_requested():
        time.sleep(0.01)
