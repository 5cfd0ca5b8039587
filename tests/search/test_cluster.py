"""How many trials a cluster holds, and what is refused before one is asked."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.config.compose import compose_sweep
from harness.config.executor import LocalExecutorConfig, RayExecutorConfig, SlurmExecutorConfig
from harness.errors import ConfigError
from harness.search.executors.build import build_executor
from harness.search.executors.child_process import trial_environment
from harness.search.executors.cluster import Node, TrialResources, divide_cluster
from harness.search.executors.local import LocalExecutor
from harness.search.study.locate import locate_sweep

BOX = Node(cores=32, num_gpus=8)


@pytest.mark.parametrize(
    ("overrides", "nodes", "expected"),
    [
        ([], [BOX], TrialResources(8, 4, 4, 1)),
        # A node without GPUs holds no trial that needs one.
        ([], [BOX, BOX, Node(128, 0)], TrialResources(16, 4, 4, 1)),
        ([], [BOX, Node(4, 4)], TrialResources(12, 1, 1, 1)),  # threads that suit every node
        ([], [Node(2, 4)], TrialResources(4, 1, 0.5, 1)),  # fewer cores than GPUs: all GPUs work
        (["sweep.devices_per_trial=2"], [BOX, Node(8, 1)], TrialResources(4, 8, 8, 2)),
        (["sweep.threads_per_trial=2"], [BOX], TrialResources(8, 2, 2, 1)),
        (["trainer.threads=3"], [BOX], TrialResources(8, 3, 3, 1)),
        (["sweep.slots=3"], [BOX], TrialResources(3, 4, 4, 1)),
        (["trainer.device=cpu"], [Node(8, 4)], TrialResources(4, 2, 2, 0)),
        ([], [Node(2, 0), Node(2, 0)], TrialResources(4, 1, 1, 0)),
    ],
)
def test_a_cluster_is_divided(overrides: list[str], nodes: Sequence[Node], expected: TrialResources) -> None:
    assert divide_cluster(compose_sweep(overrides), nodes) == expected


def test_the_threads_of_the_executor_hold_where_the_sweep_has_none() -> None:
    assert divide_cluster(compose_sweep([]), [BOX], threads=6).threads == 6
    assert divide_cluster(compose_sweep(["sweep.threads_per_trial=2"]), [BOX], threads=6).threads == 2


def test_no_slot_of_a_cluster_is_pinned_by_us() -> None:
    assert divide_cluster(compose_sweep([]), [BOX]).slots.device_indices(5, 1) is None


def test_the_local_executor_is_the_default() -> None:
    assert isinstance(compose_sweep([]).sweep.executor, LocalExecutorConfig)
    assert isinstance(build_executor(LocalExecutorConfig()), LocalExecutor)


@pytest.mark.parametrize(
    ("config", "package"), [(RayExecutorConfig(), "ray"), (SlurmExecutorConfig(), "submitit")]
)
def test_a_missing_package_is_named_with_its_cure(
    config: RayExecutorConfig | SlurmExecutorConfig, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"harness.search.executors.{config.kind}", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Without(package), *sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(ConfigError, match=rf"{config.kind} needs the package {package}: make setup-cluster"):
        build_executor(config)


class _Without(importlib.abc.MetaPathFinder):
    """Hides a package, installed or not."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.partition(".")[0] == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_trial_elsewhere_gets_what_shapes_it_and_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PGPASSFILE", "pass")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("HARNESS_OFFLINE", "0")
    passed_on = trial_environment()

    assert passed_on["DATA_DIR"] == str(tmp_path)
    assert passed_on["PGPASSFILE"] == "pass"
    assert passed_on["HARNESS_OFFLINE"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in passed_on
    assert "PATH" not in passed_on


def test_the_command_that_goes_on_shows_no_password() -> None:
    typed = ["data=digits", "sweep.storage=postgresql://me:secret@host/sweeps", "sweep.slots=2"]
    command = locate_sweep(compose_sweep(typed)).command
    assert command == (
        "harness sweep data=digits sweep.slots=2 'sweep.storage=postgresql://me:***@host/sweeps'"
    )
    assert locate_sweep(compose_sweep(["data=digits"])).command == "harness sweep data=digits"
