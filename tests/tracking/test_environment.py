from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import RerunError
from harness.tracking import checkout as checkouts
from harness.tracking import environment
from harness.tracking.checkout import code_aside, source_digest
from harness.tracking.environment import capture_environment, loaded_code, read_checkout, record_environment
from tests.helpers.recording_tracker import RecordingTracker

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture(autouse=True)
def _as_in_a_fresh_process() -> Iterator[None]:
    loaded_code.cache_clear()
    yield
    loaded_code.cache_clear()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    folder = tmp_path / "a clone"
    folder.mkdir()
    (folder / "code.py").write_text("x = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout


@needs_git
def test_a_clean_checkout(checkout: Path) -> None:
    state = read_checkout(checkout)
    assert state is not None
    assert state.commit == git(checkout, "rev-parse", "HEAD").strip()
    assert (state.is_dirty, state.patch, state.untracked) == (False, "", ())


@needs_git
def test_the_patch_restores_unsaved_work(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "code.py").write_text("x = 2\n")
    (checkout / "empty.py").touch()
    (checkout / "new file.py").write_text("y = 1")  # without a line break at its end
    (checkout / "notes.txt").write_text("no code")
    git(checkout, "config", "diff.noprefix", "true")
    state = read_checkout(checkout)
    assert state is not None
    assert state.is_dirty
    assert set(state.untracked) == {'"new file.py"', "empty.py", "notes.txt"}
    digest = source_digest(checkout)

    monkeypatch.setattr(checkouts, "PACKAGE", checkout)
    with code_aside(state.commit, state.patch) as folder:
        assert source_digest(folder) == digest
        assert (folder / "code.py").read_text() == "x = 2\n"
        assert (folder / "new file.py").read_text() == "y = 1"
        assert not (folder / "notes.txt").exists()
        assert read_checkout(folder).commit == state.commit  # type: ignore[union-attr]
    assert not folder.exists()
    assert git(checkout, "worktree", "list").count("\n") == 1


@needs_git
def test_code_that_cannot_be_put_aside_is_one_line(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(checkout, "rev-parse", "HEAD").strip()
    monkeypatch.setattr(checkouts, "PACKAGE", checkout)
    for wanted, patch, fault in (
        ("0" * 40, "", r"commit 000000000000, which .* does not have: fetch it; --here"),
        (commit, "no patch\n", rf"changes do not apply to commit {commit[:12]} \(git: .*\): --here"),
    ):
        with pytest.raises(RerunError, match=fault), code_aside(wanted, patch):
            pass
    monkeypatch.setenv("PATH", str(checkout))
    with pytest.raises(RerunError, match=r"git is missing, or .* is no clone"), code_aside(commit, ""):
        pass


@needs_git
def test_another_projects_repository_is_not_ours(checkout: Path) -> None:
    (checkout / ".gitignore").write_text(".venv\n")
    installed = checkout / ".venv" / "site-packages" / "harness"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert read_checkout(installed) is None


@needs_git
def test_what_is_edited_after_the_import_is_not_what_runs(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "PACKAGE", checkout)
    loaded_code()
    (checkout / "code.py").write_text("x = 2\n")
    state = capture_environment().checkout
    assert state is not None
    assert not state.is_dirty


@needs_git
def test_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert read_checkout(tmp_path) is None


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_checkout(Path(environment.__file__).parent) is None
    assert capture_environment().checkout is None


def test_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/harness/__main__.py", "train", "run.name=a b"])
    checkout = environment.Checkout("abc123", True, "the patch", ("new.py",))
    monkeypatch.setattr(environment, "read_checkout", lambda folder: checkout)
    tracker = RecordingTracker()
    record_environment(tracker, capture_environment("A GPU"))
    assert tracker.tags["mlflow.source.git.commit"] == "abc123"
    assert tracker.tags["harness.git.dirty"] == "true"
    assert tracker.tags["harness.command"] == "harness train 'run.name=a b'"
    assert tracker.tags["harness.device"] == "A GPU"
    assert tracker.artifacts["uncommitted.patch"] == b"the patch"
    content = json.loads(tracker.artifacts["environment.json"])
    assert content["packages"]["torch"]
    assert "patch" not in content["checkout"]
    everything = str(tracker.tags) + str(content)
    assert platform.node() == "" or platform.node() not in everything


@pytest.mark.parametrize(
    ("limit", "expected"), [("3000000", 3_000_000 - 1_000_000), ("max", None), ("nonsense", None)]
)
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int | None
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.stat").write_text("file 5\nanon 1000000\n")
    monkeypatch.setattr(environment, "CGROUP", tmp_path / "absent")
    machine = environment.available_memory()
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    found = environment.available_memory()

    assert machine > 3e6
    assert found == expected if expected else found > 3e6
