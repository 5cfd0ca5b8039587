"""Runs trials on a Ray cluster: each trial has an actor, which reserves GPUs and runs its command.

Ray restarts nothing; the coordinator starts trials again. The trial is a child process of the actor, so
Ray's own process never trains. An actor is used, not a Ray task, because a running task can be cancelled but
not asked to stop.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

for _name, _value in {  # read when Ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # Despite its name, this makes Ray use 127.0.0.1 as this machine's address on Linux too, so that a local
    # cluster listens on no other address. `_node_ip_address="127.0.0.1"` would not do: Ray replaces it by the
    # external address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray.exceptions import RayError  # noqa: E402

from harness.config.compose import SweepPlan  # noqa: E402
from harness.config.executor import RayExecutorConfig  # noqa: E402
from harness.errors import ConfigError, SweepError, first_line  # noqa: E402
from harness.search.coordinator.slots import Slots  # noqa: E402
from harness.search.executors.base import EXIT_VANISHED, LOG, TRIAL_MODULE, Placement  # noqa: E402
from harness.search.executors.child_process import TrialProcess, trial_environment  # noqa: E402
from harness.search.executors.cluster import Node, TrialResources, divide_cluster  # noqa: E402
from harness.search.trial.exit_codes import EXIT_STOPPED  # noqa: E402

OBJECT_STORE_BYTES = 80 * 2**20  # of a local cluster; it holds exit codes only
CALL_TIMEOUT_S = 5.0


class RayPlacement:
    """A trial's actor, and its exit code once it has ended."""

    def __init__(self, actor: Any, log: Path) -> None:
        self._actor, self._log = actor, log
        self._is_up = actor.__ray_ready__.remote()
        self.ended = actor.run.remote()
        self._exit_code: int | None = None

    @property
    def is_pending(self) -> bool:
        return self._exit_code is None and not _is_known(self._is_up)

    def exit_code(self) -> int | None:
        if self._exit_code is None and _is_known(self.ended):
            self._exit_code = self._read_exit_code()
            ray.kill(self._actor)  # or it would hold its GPUs until it is collected as garbage
        return self._exit_code

    def stop(self) -> None:
        if self.is_pending:
            ray.kill(self._actor)
            self._exit_code = EXIT_STOPPED
        elif self._exit_code is None:
            self._actor.stop.remote()

    def kill(self) -> None:
        """Kill the trial, and return once it is dead: it might hold a lock of the database."""
        if self._exit_code is None and not self.is_pending:
            with suppress(RayError):
                ray.get(self._actor.kill.remote(), timeout=CALL_TIMEOUT_S)
        ray.kill(self._actor)

    def _read_exit_code(self) -> int:
        try:
            return int(ray.get(self.ended))
        except RayError as error:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"Ray: {error}\n")
            return EXIT_VANISHED


class RayExecutor:
    """Places trials on an existing Ray cluster, or on one of this machine that ends with this process.

    Args:
        module: what `python -m` runs with a spec.
    """

    def __init__(self, config: RayExecutorConfig, module: str = TRIAL_MODULE) -> None:
        self._config, self._module = config, module
        self._resources = TrialResources(1, 1, 1, 0)

    def prepare(self, plan: SweepPlan) -> Slots:
        _connect(self._config)
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [Node(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in resources]
        self._resources = divide_cluster(plan, [node for node in nodes if node.cores])
        return self._resources.slots

    def place(self, spec_path: Path) -> RayPlacement:
        actor_class = ray.remote(TrialProcess).options(
            num_cpus=self._resources.cores,
            num_gpus=self._resources.num_gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=4,  # `stop` and `kill` can run while `run` waits
        )
        actor = actor_class.remote(str(spec_path), str(Path.cwd()), trial_environment(), self._module)
        return RayPlacement(actor, spec_path.with_name(LOG))

    def wait(self, placements: Sequence[Placement], timeout_s: float) -> None:
        ends = [placement.ended for placement in placements if isinstance(placement, RayPlacement)]
        ray.wait(ends, num_returns=1, timeout=timeout_s)

    def close(self) -> None:
        """Disconnect from the cluster; a local cluster is shut down."""
        ray.shutdown()


def _is_known(reference: Any) -> bool:
    """Return whether a remote method has returned or raised."""
    return bool(ray.wait([reference], timeout=0)[0])


def _connect(config: RayExecutorConfig) -> None:
    """Start a cluster that only this machine can reach, or join the one at the address.

    Raises:
        ConfigError: an address without a token.
        SweepError: Ray does not answer.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if config.address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray keeps one in the home folder
        options |= {"num_gpus": config.num_gpus, "object_store_memory": OBJECT_STORE_BYTES}
    else:
        _require_token(config.address)
        _reach(config.address)
    try:
        with _own_sigterm():
            ray.init(config.address or "local", include_dashboard=False, **options)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        where = config.address or "this machine"
        raise SweepError(f"Ray does not answer ({where}): {first_line(error)}") from error


def _require_token(address: str) -> None:
    """Refuse a cluster without a token, as anybody who can connect to it could run code on it."""
    token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    has_token = token or (Path.home() / ".ray" / "auth_token").is_file()
    if os.environ["RAY_AUTH_MODE"] == "disabled" or not has_token:
        raise ConfigError(
            f"sweep.executor.address={address} needs a cluster with token authentication: start it with "
            "RAY_AUTH_MODE=token, and set RAY_AUTH_TOKEN_PATH to the file that holds its token"
        )


def _reach(address: str) -> None:
    """Fail within seconds if no process listens at the address; Ray would take minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return  # such as "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), CALL_TIMEOUT_S).close()
    except OSError as error:
        raise SweepError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restore this process's SIGTERM handler at the end, because Ray installs one that exits at once."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
