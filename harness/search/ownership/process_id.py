"""A process, as others recognise it: whether it is of this machine, whether it lives, and how it is ended."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import psutil

from harness.training.ranks import known_pid


@dataclass(frozen=True)
class Owner:
    """A process, as others can recognise it."""

    host: str
    pid: int
    birth: str  # what a later process of the same number has not
    trains: bool = False  # the trial's own process, rather than the coordinator that is about to start it

    @classmethod
    def current(cls, *, trains: bool = False) -> Owner:
        pid = known_pid() if trains else os.getpid()
        return cls(_host(), pid, birth_of(pid), trains)

    @property
    def is_here(self) -> bool:
        return self.host == _host()

    def process(self) -> psutil.Process | None:
        """Return it if it is of this machine and lives."""
        if not self.is_here:
            return None
        with suppress(psutil.Error, OSError):
            process = psutil.Process(self.pid)
            is_same = birth_of(self.pid) == self.birth
            if is_same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Owner:
        return cls(**json.loads(text))


@cache
def _host() -> str:
    """Return what tells this machine from others, a container's processes from its neighbour's included.

    Machines that were cloned have one name, one machine id and one number of the namespace: what they do not
    share is when they were started. So this machine before it was started anew is another one too, whose
    trials are free once their leases have run out.
    """
    namespace = Path("/proc/self/ns/pid")
    number = str(namespace.stat().st_ino) if namespace.exists() else ""
    return "/".join(filter(None, (socket.gethostname(), number, _boot_id())))


def _boot_id() -> str:
    """Return what a system calls the time since it was started; empty where it does not say."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.exists() else ""


def birth_of(pid: int) -> str:
    """Return when a process began, by a clock that nobody sets: the boot's, where the system shows it."""
    if not (boot := _boot_id()):
        return f"{psutil.Process(pid).create_time():.2f}"
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{boot}+{ticks}"


def end_process(owner: Owner) -> None:
    """End a process of this machine that has lost its trial: it may be stopped, and awake later."""
    process = owner.process()
    if process is None or process.pid == os.getpid():
        return
    with suppress(psutil.Error):
        for child in (*process.children(recursive=True), process):
            child.send_signal(signal.SIGKILL)
