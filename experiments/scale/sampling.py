"""Measures what a simulation uses: memory, processor time, connections to the database server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

POLL_S = 1.0
MEMORY_EVERY = 5  # memory is read at every fifth poll, as that takes a millisecond per process


@dataclass
class Usage:
    """What workers and server used: of connections and memory the peak, of processor time the sum."""

    connections: int = 0
    workers_gb: float = 0.0
    server_gb: float = 0.0
    workers_cpu_s: float = 0.0
    server_cpu_s: float = 0.0
    machine_cpu_s: float = 0.0  # of everything that ran on the machine, other programs included


class Meter:
    """Reads the usage of two trees of processes until it is told to stop.

    Args:
        workers: id of the process whose children the workers are.
        server: id of the database server's first process; None if the database is a file.
        count_connections: returns how many connections the server has.
    """

    def __init__(self, workers: int, server: int | None, count_connections: Callable[[], int]) -> None:
        self._workers, self._server = workers, server
        self._count_connections = count_connections
        self.usage = Usage()

    @contextmanager
    def running(self) -> Iterator[Usage]:
        """Sample connections and memory during the block; set the processor times when it ends."""
        before, done = self._cpu(), threading.Event()
        reader = threading.Thread(target=self._read_until, args=(done,), daemon=True)
        reader.start()
        try:
            yield self.usage
        finally:
            done.set()
            reader.join()
            spent = [after - start for start, after in zip(before, self._cpu(), strict=True)]
            self.usage.workers_cpu_s, self.usage.server_cpu_s, self.usage.machine_cpu_s = spent

    def _read_until(self, done: threading.Event) -> None:
        looks = 0
        while not done.wait(POLL_S):
            self.usage.connections = max(self.usage.connections, self._count_connections())
            if looks % MEMORY_EVERY == 0:
                self.usage.workers_gb = max(self.usage.workers_gb, _memory_gb(self._workers))
                self.usage.server_gb = max(self.usage.server_gb, _memory_gb(self._server))
            looks += 1

    def _cpu(self) -> tuple[float, float, float]:
        busy = psutil.cpu_times()
        return (
            _cpu_s(self._workers),
            _cpu_s(self._server),
            sum(busy) - busy.idle - getattr(busy, "iowait", 0.0),
        )


def _cpu_s(root: int | None) -> float:
    """Return the processor time of a process and its descendants, including those that have ended."""
    total = 0.0
    for process in _tree(root):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _memory_gb(root: int | None) -> float:
    """Return the proportional set size of a tree: what processes share counts once."""
    total = 0
    for process in _tree(root):
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 1e9


def _tree(root: int | None) -> list[psutil.Process]:
    if root is None:
        return []
    with suppress(psutil.Error):
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    return []
