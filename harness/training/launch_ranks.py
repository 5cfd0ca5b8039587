"""Starts the processes that train one model together, one per device, and sees them to their end.

torch's elastic agent (what `torchrun` runs) starts them on this machine, watches them, and ends them all if
one dies. They are functions here, not command lines: on a CPU they are forked from this process, which has
imported everything; where there are GPUs they start afresh, since CUDA does not survive a fork.
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
STOPPING = (signal.SIGTERM, signal.SIGINT)  # the latter where it is not ignored: a sweep's trials ignore it
PR_SET_PDEATHSIG = 1  # from linux/prctl.h

Work = Callable[..., int]  # called in each rank; importable by name, as are its arguments


# ── the process that starts them ──────────────────────────────────────────────────────────────────


def launch(work: Work, num_ranks: int, *args: Any, grace_s: float = 30.0) -> int:
    """Run `work(*args)` in several processes that train together, as one thing that succeeds, stops or fails.

    SIGTERM and Ctrl-C are passed on, for `stop_requested` to tell. If this process dies, however it does, so
    do they.

    Args:
        work: returns an exit code; all ranks are to return the same.
        grace_s: how long they may take to leave once asked, before they are killed.

    Returns:
        The exit code; 143 where they were stopped; 128 + the signal where one was killed.

    Raises:
        Exception: what the first rank to fail has raised.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        silence(logging.getLogger(name))  # what they say is said here
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
        max_restarts=0,  # whoever started us decides about that
        start_method=start_method(),
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        signals_to_handle=",".join(number.name for number in _handled()),
        shutdown_timeout=max(1, round(grace_s)),
    )


def start_method() -> str:
    """Return how ranks start: forked, where there is no CUDA, which does not survive it."""
    import torch

    return "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


def silence(logger: logging.Logger) -> None:
    """Drop what a logger says and all below it, which may have levels of their own."""
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


@contextmanager
def _pending_in_ranks() -> Iterator[None]:
    """Leave signals pending, for `stop_requested`, in the processes that this thread starts within.

    They are born with the signals blocked, and so are all their threads: a library's, started by an import
    before we could block anything there, would else take the signals, for whatever handler there is.
    This process goes on hearing them, by a thread that does not block them.
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
    """Leave when asked to before anything has started; from then on the agent takes the signals."""

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
    """Stop when the process that started us is gone, as if it had asked for it."""
    coordinator = parent_process()

    def watch() -> None:
        assert coordinator is not None
        coordinator.join()
        os.kill(os.getpid(), signal.SIGTERM)

    if coordinator is not None:
        threading.Thread(target=watch, daemon=True).start()


def _first_error(folder: Path) -> Exception | None:
    """Return what the first rank to fail has raised; None where one was killed, or left by itself."""
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


# ── the processes themselves ──────────────────────────────────────────────────────────────────────


def is_rank() -> bool:
    """Tell whether this process is one of several that train together."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def known_pid() -> int:
    """Return the process by which others know this one: a rank's launcher, which outlives all ranks."""
    return os.getppid() if is_rank() else os.getpid()


def stop_requested() -> bool:
    """Tell, in a rank, whether it was asked to stop."""
    return not signal.sigpending().isdisjoint(STOPPING)


def _run_rank(work: Work, args: tuple[Any, ...], folder: str) -> int:
    import torch.distributed as dist

    _die_with_launcher()  # signals are pending here, as Lightning's handler would broadcast in mid-batch
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
    signal.signal(
        signal.SIGTERM, signal.SIG_DFL
    )  # nothing is left to be stopped: the agent may end us at once
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    return 0


def _die_with_launcher() -> None:
    """Have the kernel end this process with the one that started it, even if that one is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _join() -> None:
    """Meet the other ranks; what they tell each other goes over the host, gradients from device to device."""
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
    """Leave an exception for the launcher, with what it was raised from, which pickle would drop."""
    atomic_write(path, pickle.dumps([_sendable(cause) for cause in causes(error)]))


def _sendable(error: BaseException) -> BaseException:
    """Return the exception as it is, or what it says where pickle cannot make it again."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(traceback.format_exception_only(error)[-1].strip())
    return error
