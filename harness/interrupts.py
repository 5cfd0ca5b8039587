"""Ctrl-C: one line and exit code 130 at any moment, and nothing of it for the helpers that we start."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

EXIT_INTERRUPTED = 128 + signal.SIGINT
INTERRUPTED = "interrupted; nothing is lost: repeat the command"


def answer_interrupts() -> None:
    """Let Ctrl-C end this process in one line, whatever it is doing; to be called before heavy imports.

    KeyboardInterrupt would be raised wherever the program is, in imports and callbacks that make anything of
    it, or drop it. Ending at once costs nothing: whatever we write, a kill does not spoil. What has more to
    do in the end (a sweep, training) answers by itself.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, lambda number, frame: leave_at_once())


@contextmanager
def raising() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt within, for what has to clean up."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def leave_at_once(line: str = INTERRUPTED) -> NoReturn:
    """End this process now, as its kill would, with one line."""
    os.write(2, f"{line}\n".encode())
    os._exit(EXIT_INTERRUPTED)


@contextmanager
def held_back(signals: Iterable[int] = (signal.SIGINT,)) -> Iterator[None]:
    """Hold Ctrl-C (or other signals) back within, and from what is started there for as long as it lives.

    A terminal sends it to every process of its group, a fork server in the midst of its imports included.
    Whatever is forked from that server is to call `leave_to_parent`.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # started within, it would end what we begin here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """Never hear of Ctrl-C in this process: who has started it does, and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # held back, it would be pending for ever
