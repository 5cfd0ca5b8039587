"""Identifies a process across machines, tells whether it is alive, and kills it.

Claims and leases write a `ProcessId` into the database as the owner of a trial.
"""

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

from harness.training.devices.launch_ranks import known_pid


@dataclass(frozen=True)
class ProcessId:
    """A process on one machine: host, PID and start time (the system reuses PIDs)."""

    host: str
    pid: int
    start_time: str  # tells this process from a later one with the same PID
    trains: bool = False  # False: the coordinator or worker that is about to start the trial's process

    @classmethod
    def current(cls, *, trains: bool = False) -> ProcessId:
        pid = known_pid() if trains else os.getpid()
        return cls(_host(), pid, start_time_of(pid), trains)

    @property
    def is_here(self) -> bool:
        return self.host == _host()

    def process(self) -> psutil.Process | None:
        """Return the process if it runs on this machine; None if it has ended or runs elsewhere."""
        if not self.is_here:
            return None
        with suppress(psutil.Error, OSError):
            process = psutil.Process(self.pid)
            is_same = start_time_of(self.pid) == self.start_time
            if is_same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def to_json(self) -> str:
        fields = asdict(self)
        fields["birth"] = fields.pop("start_time")  # the key in databases
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> ProcessId:
        fields = json.loads(text)
        fields["start_time"] = fields.pop("birth")
        return cls(**fields)


@cache
def _host() -> str:
    """Return a name that no other machine or container has: host name, PID namespace and boot id.

    Cloned machines share the host name, the machine id and the number of the PID namespace, but not the boot
    id. So this machine before a reboot counts as another machine: its trials are free once their leases end.
    """
    namespace = Path("/proc/self/ns/pid")
    number = str(namespace.stat().st_ino) if namespace.exists() else ""
    return "/".join(filter(None, (socket.gethostname(), number, _boot_id())))


def _boot_id() -> str:
    """Return the random id that Linux generates at each boot; empty on other systems."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.exists() else ""


def start_time_of(pid: int) -> str:
    """Return when a process began: boot id and clock ticks since boot, which no change of the clock moves."""
    if not (boot := _boot_id()):
        return f"{psutil.Process(pid).create_time():.2f}"
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{boot}+{ticks}"


def end_process(owner: ProcessId) -> None:
    """Kill a process of this machine that has lost its trial, and its children, even if it is suspended."""
    process = owner.process()
    if process is None or process.pid == os.getpid():
        return
    with suppress(psutil.Error):
        for child in (*process.children(recursive=True), process):
            child.send_signal(signal.SIGKILL)
