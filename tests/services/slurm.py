"""A Slurm cluster of one node with four GPUs that are not there, and with more cores than the machine."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from experiments.scale.postgres import free_port
from tests.services import terminate, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
DEVICES = ("null", "zero", "full", "urandom")  # a GPU must be a device file, and these are everywhere

GRES = "AutoDetect=off\n" + "".join(f"NodeName=one Name=gpu File=/dev/{device}\n" for device in DEVICES)
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=2
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=8000 Gres=gpu:4
PartitionName=main Nodes=one Default=YES MaxTime=INFINITE State=UP
PartitionName=closed Nodes=one MaxTime=INFINITE State=DOWN
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start a cluster and point this process's Slurm commands at it; yields the folder of its logs."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        pytest.skip(f"no {missing[0]} on this machine (apt-get install slurm-wlm munge)")
    folder = tmp_path_factory.mktemp("slurm")
    _configure(folder)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", _path())
        for command in _daemons(folder):
            stack.callback(terminate, subprocess.Popen(command, stderr=subprocess.DEVNULL))
            if command[0] == "munged":
                wait_until((folder / "munge.socket").exists, "munged", folder / "munged.log")
        wait_until(_is_idle, "Slurm", folder / "slurmctld.log")
        yield folder
        subprocess.run(["scancel", "--user", getpass.getuser()], check=False)
        wait_until(lambda: not _ask("squeue", "--noheader"), "the end of the jobs", folder / "slurmd.log")


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where the daemons are, and accounts do not look


def _configure(folder: Path) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    (folder / "gres.conf").write_text(GRES)
    (folder / "slurm.conf").write_text(
        CONF.format(
            folder=folder,
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            controller_port=free_port(),
            node_port=free_port(),
        )
    )


def _daemons(folder: Path) -> list[list[str]]:
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge{'d' if end == 'log' else ''}.{end}" for option, end in files.items()]
    return [
        ["munged", "--foreground", "--force", *munge],  # --force: the folder may belong to root
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "one"],
    ]


def _is_idle() -> bool:
    return _ask("sinfo", "--noheader", "--partition=main", "--format=%T") == "idle"


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
