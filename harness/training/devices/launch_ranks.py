"""Starts the ranks: the processes that train one model together on this machine, one per device.

`command.py` (`harness train`) and `harness.search.trial.multi_device` (a sweep's trial) call `launch`.
torch's elastic agent, the one behind `torchrun`, starts the ranks, watches them, and ends all of them if one
dies. On a CPU they are forked from this process, which has imported everything already. With GPUs they are
spawned, because CUDA cannot be used in a forked process. Ranks communicate by `collectives.py`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from harness.errors import HarnessError, causes
from harness.files import atomic_write
from harness.signals import held_back, leave_at_once

EXIT_STOPPED = 128 + signal.SIGTERM
EXIT_FAILED = 1
STOPPING = (signal.SIGTERM, signal.SIGINT)  # without effect where ignored, as SIGINT is in a sweep's trials
PR_SET_PDEATHSIG = 1  # from linux/prctl.h

Work = Callable[..., int]  # called in each rank; must be picklable, as must its arguments


# ── the launcher ──────────────────────────────────────────────────────────────────────────────────


def launch(work: Work, num_ranks: int, *args: Any, grace_s: float = 30.0) -> int:
    """Run `work(*args)` in `num_ranks` processes, and wait for them.

    SIGTERM and Ctrl-C are passed on to the ranks, where `stop_requested` reports them. On Linux the ranks die
    with this process, even if SIGKILL ends it.

    Args:
        work: called in each rank; returns an exit code, the same on all ranks.
        grace_s: seconds between asking the ranks to stop and killing them.

    Returns:
        The exit code: the one that `work` returned, or 128 + the signal that stopped the ranks or killed one
        of them.

    Raises:
        Exception: the exception of the first rank that failed.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        silence(logging.getLogger(name))  # this function reports how the ranks ended
    _stop_with_coordinator()
    with _own_signals(), tempfile.TemporaryDirectory(prefix="harness-ranks-") as folder:
        agent = elastic_launch(_agent_config(num_ranks, folder, grace_s), _run_rank)
        try:
            with _pending_in_ranks():
                agent(work, args, folder)
        except SignalException as stopped:
            return 128 + stopped.sigval
        except ChildFailedError as error:
            if failure := _first_error(Path(folder)):
                raise failure from None
            return _exit_code(min(failed.exitcode for failed in error.failures.values()))
    return 0


def _agent_config(num_ranks: int, folder: str, grace_s: float) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="127.0.0.1",  # a machine need not know its own name
        max_restarts=0,  # a sweep's scheduler decides about that
        start_method=start_method(),
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        signals_to_handle=",".join(number.name for number in _handled()),
        shutdown_timeout=max(1, round(grace_s)),
    )


def start_method() -> str:
    """Return "fork" on Linux without CUDA, "spawn" elsewhere: CUDA cannot be used in a forked process."""
    import torch

    return "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


def silence(logger: logging.Logger) -> None:
    """Drop the messages of a logger and of the loggers below it, which may have levels of their own."""
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


@contextmanager
def _pending_in_ranks() -> Iterator[None]:
    """Let this thread start ranks with SIGTERM and SIGINT blocked, so that these stay pending in a rank until
    `stop_requested` looks for them.

    A new process inherits the mask of the thread that starts it, and so do all its threads. If a rank blocked
    the signals itself, a thread that a library has started during an import would still receive them, and run
    whatever handler there is. This process still receives them, in a thread that does not block them.
    """
    done = threading.Event()
    threading.Thread(target=done.wait, name="hears signals", daemon=True).start()
    try:
        with held_back(_handled()):
            yield
    finally:
        done.set()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Exit on a signal that comes before the agent has started; the agent then sets handlers of its own."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        if number == signal.SIGINT:
            leave_at_once()
        sys.exit(EXIT_STOPPED)

    before = {number: signal.signal(number, leave) for number in _handled()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handled() -> list[signal.Signals]:
    return [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


def _stop_with_coordinator() -> None:
    """Send this process SIGTERM when its multiprocessing parent, if it has one, ends."""
    coordinator = parent_process()

    def watch() -> None:
        assert coordinator is not None
        coordinator.join()
        os.kill(os.getpid(), signal.SIGTERM)

    if coordinator is not None:
        threading.Thread(target=watch, daemon=True).start()


def _first_error(folder: Path) -> Exception | None:
    """Return the exception of the first rank that failed; None if a rank was killed or called `sys.exit`."""
    found = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        return None
    error, *causes = pickle.loads(found[0].read_bytes())  # our own, just written
    for raised, cause in pairwise([error, *causes]):
        raised.__cause__ = cause
    assert isinstance(error, Exception)
    return error


def _exit_code(code: int) -> int:
    if code >= 0:
        return code
    print(f"one of the processes that train together was ended by signal {-code}", file=sys.stderr)
    return 128 - code


# ── inside a rank ─────────────────────────────────────────────────────────────────────────────────


def is_rank() -> bool:
    """Tell whether this process is one of several that train together."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def known_pid() -> int:
    """Return the PID that stands for this process in a sweep's database (see `harness.search.ownership`).

    For a rank it is the launcher's PID, because the launcher outlives all ranks; otherwise the process' own.
    """
    return os.getppid() if is_rank() else os.getpid()


def stop_requested() -> bool:
    """Tell, in a rank, whether a signal has asked it to stop."""
    return not signal.sigpending().isdisjoint(STOPPING)


def _run_rank(work: Work, args: tuple[Any, ...], folder: str) -> int:
    import torch.distributed as dist

    # The signals stay blocked here (`_pending_in_ranks`): Lightning's handler for SIGTERM would start a
    # collective in the middle of a batch.
    _die_with_launcher()
    try:
        _join()
        code = work(*args)
    except Exception as error:
        if not isinstance(error, HarnessError):
            traceback.print_exc()
        _keep(error, Path(folder) / f"{os.environ['RANK']}.error")
        sys.exit(EXIT_FAILED)
    if code:
        sys.exit(code)
    dist.destroy_process_group()
    # The work is done, so the agent may end this process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    return 0


def _die_with_launcher() -> None:
    """Have the kernel kill this process when its launcher dies, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _join() -> None:
    """Join the process group: Gloo for tensors in host memory, NCCL for those on GPUs (gradients)."""
    import torch
    import torch.distributed as dist

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if dist.get_rank() > 0:
        logging.getLogger("harness").setLevel(logging.WARNING)


def _keep(error: Exception, path: Path) -> None:
    """Write an exception to a file for the launcher, with its chain of causes, which pickle would drop."""
    atomic_write(path, pickle.dumps([_sendable(cause) for cause in causes(error)]))


def _sendable(error: BaseException) -> BaseException:
    """Return the exception itself, or a RuntimeError with its message if pickle cannot restore it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(traceback.format_exception_only(error)[-1].strip())
    return error
