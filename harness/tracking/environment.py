"""Captures and records what a result depends on besides its configuration: code, packages, machine.

Training records it with each run (`record_environment`). `harness.search` calls `loaded_code` in the fork
server of trials, and uses `available_cores` and `available_memory` to choose how many trials run at a time.
No host name is recorded.
"""

from __future__ import annotations

import functools
import getpass
import math
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

import harness
from harness.credentials import shown
from harness.tracking.tracker import Tracker

PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "timm",
    "optuna",
    "mlflow",
    "numpy",
    "scikit-learn",
    "hydra-core",
    "pydantic",
    "pillow",
    "onnxruntime",
)
CGROUP = Path("/sys/fs/cgroup")
GIT_TIMEOUT_S = 10.0
MAX_PATCH_LENGTH = 2_000_000  # characters


@dataclass(frozen=True)
class Checkout:
    """The state of the git checkout that this program runs from."""

    commit: str
    is_dirty: bool
    patch: str = field(repr=False)  # changes of tracked files since the commit
    untracked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    """Code, packages and machine of one run."""

    command: str
    python: str
    system: str
    cpu: str
    cpu_cores: int  # that this process may use
    memory_gib: float
    device: str
    packages: dict[str, str]
    checkout: Checkout | None


def capture_environment(device_name: str = "cpu") -> Environment:
    """Describe this process, its machine and its code.

    Args:
        device_name: the accelerator's name, as its driver reports it.
    """
    packages, checkout = loaded_code()
    return Environment(
        command=_command(),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_model(),
        cpu_cores=available_cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        device=device_name,
        packages=packages,
        checkout=checkout,
    )


@functools.cache
def loaded_code() -> tuple[dict[str, str], Checkout | None]:
    """Return the versions of packages and the state of the checkout, as they were at the first call.

    The process from which trials are forked makes that call early. A trial then records the code that it
    imported, not what was edited since.
    """
    return package_versions(), read_checkout(Path(harness.__file__).parent)


def record_environment(tracker: Tracker, environment: Environment) -> None:
    """Record all of it as `environment.json`, a part as tags, and uncommitted changes as a patch."""
    checkout = environment.checkout
    tags = {
        "mlflow.source.name": environment.command.split(" ", 1)[0],
        "mlflow.source.type": "LOCAL",
        "harness.command": environment.command,
        "harness.python": environment.python,
        "harness.cpu": f"{environment.cpu}, {environment.cpu_cores} cores",
        "harness.device": environment.device,
    }
    if user := _user():
        tags["mlflow.user"] = user
    if checkout is not None:
        tags |= {
            "mlflow.source.git.commit": checkout.commit,
            "harness.git.dirty": str(checkout.is_dirty).lower(),
        }
        if checkout.patch:
            tracker.log_text(checkout.patch, "uncommitted.patch")
    tracker.set_tags(tags)
    content = asdict(environment)
    if checkout is not None:
        content["checkout"].pop("patch")
    tracker.log_dict(content, "environment.json")


def read_checkout(folder: Path) -> Checkout | None:
    """Return the git state of `folder`, or None where git or a checkout that tracks it is missing."""
    if not _git(folder, "ls-files", "--", "."):  # for example, installed in another project's .venv
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=normal", "--", ":/") or ""
    lines = status.splitlines()
    return Checkout(
        commit=commit.strip(),
        is_dirty=bool(lines),
        patch=_without_passwords(_git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff") or ""),
        untracked=tuple(line[3:] for line in lines if line.startswith("??")),
    )


def _without_passwords(patch: str) -> str:
    """Hide passwords in the addresses of a patch; lines without an address stay as they are."""
    lines = patch[:MAX_PATCH_LENGTH].split("\n")
    return "\n".join(shown(line) if "://" in line else line for line in lines)


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's output, or None if git is missing or fails."""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # else `status` may lock out the user's own git
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", errors="replace")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    versions = {"harness": harness.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _command() -> str:
    program = Path(sys.argv[0])
    name = f"{program.parent.name}" if program.name == "__main__.py" else program.name
    return shlex.join([name, *map(shown, sys.argv[1:])])


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Return the number of cores that this process may use (affinity, not the machine's count)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def available_memory() -> float:
    """Return how many bytes this process and its children may still allocate, within a container's limit."""
    return min(float(psutil.virtual_memory().available), _container_memory())


def _container_memory() -> float:
    """Return the bytes left below the control group's limit; page cache does not count as used."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="utf-8").strip()
        stat = (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines()
        used = next(line.split()[1] for line in stat if line.startswith("anon "))
        return math.inf if limit == "max" else float(limit) - float(used)
    except (OSError, ValueError, StopIteration):  # no container, or not Linux
        return math.inf


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an account
        return None
