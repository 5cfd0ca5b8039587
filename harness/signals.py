"""Handles Ctrl-C and SIGTERM in the processes of the harness.

A command that has nothing to clean up ends at once and prints one line (`answer_interrupts`, which
`__main__.py` calls). Training and sweeps count the signals (`StopSignals`) and stop at the next suitable
point. The helper processes that they start never see a Ctrl-C (`held_back`, `leave_to_parent`). For a run on
several devices, `harness.training.devices.launch_ranks` handles the signals.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

EXIT_INTERRUPTED = 128 + signal.SIGINT
INTERRUPTED = "interrupted; nothing is lost: repeat the command"


def answer_interrupts() -> None:
    """Let Ctrl-C end this process at once, with one line printed; to be called before heavy imports.

    By default, Python raises KeyboardInterrupt at whatever point the program has reached, and libraries turn
    it into other errors, or swallow it. Ending at once loses nothing, as a kill damages no file that we
    write. A sweep and a training run replace this handler by `StopSignals`.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, lambda number, frame: leave_at_once())


@contextmanager
def raising() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in this block, for code that has to clean up."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def leave_at_once(line: str = INTERRUPTED) -> NoReturn:
    """Print one line and end this process at once, without any clean-up, as SIGKILL would."""
    os.write(2, f"{line}\n".encode())
    os._exit(EXIT_INTERRUPTED)


class StopSignals:
    """Counts SIGINT and SIGTERM in its `with` block, instead of raising an error at an arbitrary point.

    Args:
        answer: Called at each signal with its number and the count, in the signal's handler.
    """

    def __init__(self, answer: Callable[[int, int], None] = lambda number, count: None) -> None:
        self.count = 0
        self.first: int | None = None
        self._answer = answer
        self._before: dict[int, Any] = {}
        self._raises = False

    @property
    def exit_code(self) -> int:
        """The exit code that shells use for the first signal (128 + its number); 0 if there was none."""
        return 0 if self.first is None else 128 + self.first

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or number
        self._answer(number, self.count)
        if self._raises:
            raise KeyboardInterrupt

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at a signal in this block, or at once if there was a signal before.

        For code that does not read `count`.
        """
        self._raises = True
        try:
            if self.count:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False


@contextmanager
def held_back(signals: Iterable[int] = (signal.SIGINT,)) -> Iterator[None]:
    """Block Ctrl-C (or other signals) in this block; processes started in it keep them blocked.

    A terminal sends Ctrl-C to every process of its group, also to a fork server that is still importing. A
    process forked from that server calls `leave_to_parent`.
    """
    from multiprocessing import resource_tracker

    # Starting the resource tracker unblocks SIGINT in the calling thread, so start it before blocking.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """Ignore Ctrl-C in this process: its parent receives the same signal and ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # a blocked one would stay pending for ever
