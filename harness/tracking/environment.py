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
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

import harness
from harness.credentials import shown
from harness.tracking import names
from harness.tracking.checkout import PACKAGE, Checkout, read_checkout, source_digest
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
    code: str = ""  # digest of the package's Python files, see `source_digest`
    instructions: str = ""  # the CPU's vector instructions that torch uses, such as AVX512


def capture_environment(device_name: str = "cpu") -> Environment:
    """Describe this process, its machine and its code.

    Args:
        device_name: the accelerator's name, as its driver reports it.
    """
    loaded = loaded_code()
    return Environment(
        command=_command(),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_model(),
        cpu_cores=available_cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        device=device_name,
        packages=loaded.packages,
        checkout=loaded.checkout,
        code=loaded.digest,
        instructions=_instructions(),
    )


@dataclass(frozen=True)
class LoadedCode:
    """The code of this process: versions of packages, the checkout's state, the digest of our own files."""

    packages: dict[str, str]
    checkout: Checkout | None
    digest: str


@functools.cache
def loaded_code() -> LoadedCode:
    """Return the code of this process, as it was at the first call.

    The process from which trials are forked makes that call early. A trial then records the code that it
    imported, not what was edited since.
    """
    return LoadedCode(package_versions(), read_checkout(PACKAGE), source_digest())


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
            tracker.log_text(checkout.patch, names.PATCH_FILE)
    tracker.set_tags(tags)
    content = asdict(environment)
    if checkout is not None:
        content["checkout"].pop("patch")
    tracker.log_dict(content, names.ENVIRONMENT_FILE)


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


def _instructions() -> str:
    torch = sys.modules.get("torch")  # not imported here: a sweep's coordinator does without it
    return "" if torch is None else str(torch.backends.cpu.get_cpu_capability())


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
