"""The code that a run trains with: the git checkout that it comes from, and that code put somewhere again.

`environment.py` records what `read_checkout` and `source_digest` find. `harness rerun` calls `code_aside`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import harness
from harness.credentials import shown
from harness.errors import RerunError, one_line

PACKAGE = Path(harness.__file__).parent
GIT_TIMEOUT_S = 10.0
CLONE_TIMEOUT_S = 300.0
MAX_PATCH_LENGTH = 2_000_000  # characters
# The user's git may be configured to write patches that `git apply` does not read.
AS_GIT_APPLY_READS = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-relative", "--binary",
                      "--full-index", "--src-prefix=a/", "--dst-prefix=b/")  # fmt: skip


@dataclass(frozen=True)
class Checkout:
    """The state of the git checkout that this program runs from."""

    commit: str
    is_dirty: bool
    patch: str = field(repr=False)  # changes of tracked files since the commit, and new Python files
    untracked: tuple[str, ...] = ()


def read_checkout(folder: Path) -> Checkout | None:
    """Return the git state of `folder`, or None where git or a checkout that tracks it is missing.

    The patch also holds the Python files in `folder` that git does not track yet, as they may have run.
    """
    if not _git(folder, "ls-files", "--", "."):  # for example, installed in another project's .venv
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=normal", "--", ":/") or ""
    lines = status.splitlines()
    untracked = tuple(line[3:] for line in lines if line.startswith("??"))
    patch = _git(folder, "diff", "HEAD", *AS_GIT_APPLY_READS) or ""
    if untracked:
        patch += _new_sources(folder)
    return Checkout(
        commit=commit.strip(),
        is_dirty=bool(lines),
        patch=_without_passwords(patch),
        untracked=untracked,
    )


def _new_sources(folder: Path) -> str:
    """Return a patch that creates the Python files in `folder` that git neither tracks nor ignores."""
    root = Path((_git(folder, "rev-parse", "--show-toplevel") or "").rstrip("\n"))
    listed = _git(folder, "ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", "*.py")
    paths = [path for path in (listed or "").split("\0") if path]
    options = ("--no-index", *AS_GIT_APPLY_READS, "--", os.devnull)
    return "".join(_git(root, "diff", *options, path, differs_by=1) or "" for path in paths)


def _without_passwords(patch: str) -> str:
    """Hide passwords in the addresses of a patch; lines without an address stay as they are."""
    lines = patch[:MAX_PATCH_LENGTH].split("\n")
    return "\n".join(shown(line) if "://" in line else line for line in lines)


def source_digest(package: Path = PACKAGE) -> str:
    """Return the SHA-256 of all Python files of a package, their names included, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


@contextmanager
def code_aside(commit: str, patch: str) -> Iterator[Path]:
    """Yield a temporary folder with this repository's code at a commit, and uncommitted changes applied.

    It is a clone that shares the repository's objects, so that neither the user's files nor the list of their
    worktrees change.

    Args:
        patch: as `read_checkout` returns it; empty: there were no changes.

    Raises:
        RerunError: git or the repository is missing, the commit is gone, or the patch does not apply.
    """
    here = "--here trains with the code as it is now"
    root = (_git(PACKAGE, "rev-parse", "--show-toplevel") or "").rstrip("\n")
    if not root:
        raise RerunError(
            f"the run's code is commit {commit[:12]}, but git is missing, or {PACKAGE.parent} is no clone of "
            f"its repository: install git and run a clone; {here}"
        )
    if _git(Path(root), "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise RerunError(
            f"the run's code is commit {commit[:12]}, which {root} does not have: fetch it; {here}"
        )
    with tempfile.TemporaryDirectory(prefix="harness-code-") as folder:
        clone = Path(folder) / "code"
        quiet = ("-c", "advice.detachedHead=false", "-c", "core.hooksPath=/dev/null")
        _must(Path(root), *quiet, "clone", "--quiet", "--shared", "--no-checkout", root, str(clone))
        _must(clone, *quiet, "checkout", "--quiet", "--detach", commit)
        if patch:
            try:
                _must(clone, "apply", "--whitespace=nowarn", "-", stdin=patch)
            except RerunError as error:
                raise RerunError(
                    f"the run's uncommitted changes do not apply to commit {commit[:12]} ({error}): {here}"
                ) from None
        yield clone


def _must(folder: Path, *arguments: str, stdin: str = "") -> None:
    """Run git.

    Raises:
        RerunError: it fails, with its last line.
    """
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=CLONE_TIMEOUT_S,
            input=stdin.encode(),
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RerunError(f"git cannot be run: {one_line(str(error))}") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", errors="replace").strip().splitlines() or ["no reason given"]
        raise RerunError(f"git: {one_line(said[-1])}")


def _git(folder: Path, *arguments: str, differs_by: int = 0) -> str | None:
    """Return git's output, or None if git is missing or fails.

    Args:
        differs_by: the exit code, besides 0, that is no failure.
    """
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # else `status` may lock out the user's own git
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode not in (0, differs_by):
        return None
    return done.stdout.decode("utf-8", errors="replace")
