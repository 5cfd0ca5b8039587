"""What could not be recorded, kept on disk until it can be.

A run has two lanes, each a file of JSON lines, one line per operation: its records (metrics, parameters,
tags, status), which keep their order, and its artifacts and models, of which those of one name keep theirs.
One artifact that cannot be written therefore holds back nothing else. An operation is plain JSON and may be
applied twice without harm, so a crash between applying it and forgetting it costs nothing.

To append takes a lock for as long as a line takes to be written. Who replays holds another lock meanwhile,
which nobody waits for: whoever finds it taken leaves the work to its holder.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.files import atomic_write

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 30.0  # for a lock that is held for milliseconds
ARTIFACTS, REFUSED = ".artifacts.jsonl", ".refused.jsonl"
ARTIFACT_OPERATIONS = ("artifact", "model", "forget_models")

Operation = dict[str, Any]  # {"op": name, ...}, JSON types only
Points = dict[tuple[str, int], tuple[float, int]]  # (metric, step) -> value, milliseconds since 1970
Apply = Callable[[Operation], Sequence[Operation]]  # does it; returns what is refused for good


class Lane:
    """Operations that wait, in one file.

    Args:
        set_aside: told of what was refused for good.
        done: told of each operation that waits no more.
    """

    def __init__(
        self,
        path: Path,
        set_aside: Callable[[Sequence[Operation]], None],
        done: Callable[[Operation], None],
    ) -> None:
        self.path = path
        self._set_aside, self._done = set_aside, done
        self._file_lock = FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT_S)
        self._replay_lock = FileLock(f"{path}.replay.lock", timeout=0)

    @property
    def is_empty(self) -> bool:
        return not self.path.exists()

    def append(self, operation: Operation) -> None:
        """Keep an operation; a line that an earlier process left torn stays a line of its own.

        Raises:
            OSError: it cannot be kept; nothing of it is left in the file.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(operation).encode() + b"\n"
        with self._file_lock, self.path.open("a+b", buffering=0) as file:
            size = file.seek(0, 2)
            if size:
                file.seek(-1, 2)
                line = line if file.read(1) == b"\n" else b"\n" + line
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, "no space left")
            except OSError:
                file.truncate(size)
                raise

    def operations(self) -> list[Operation]:
        """Return what waits."""
        if self.is_empty:
            return []
        with self._file_lock:
            return [operation for operation in map(_parse, self._lines()) if operation is not None]

    def holds_back(self, operation: Operation) -> bool:
        """Return whether something waits that has to be recorded before an operation."""
        return any(_order_of(waiting) == _order_of(operation) for waiting in self.operations())

    def replay(self, apply: Apply) -> None:
        """Apply what is kept, unless another process is at it.

        What fails stays, with what has to come after it; then the first error is raised.
        """
        while not self.is_empty:  # again: what came meanwhile was left to us
            try:
                self._replay_lock.acquire()
            except Timeout:
                return
            try:
                error = self._replay_once(apply)
            finally:
                self._replay_lock.release()
            if error is not None:
                raise error

    def _replay_once(self, apply: Apply) -> Exception | None:
        with self._file_lock:
            lines = self._lines()
        ended: set[int] = set()
        held_back: set[str] = set()
        refused: list[Operation] = []
        first_error: Exception | None = None
        try:
            for index, operation in enumerate(map(_parse, lines)):
                if operation is None:  # torn by a kill
                    ended.add(index)
                elif _order_of(operation) not in held_back:
                    try:
                        refused += apply(operation)
                        ended.add(index)
                    except Exception as error:
                        first_error = first_error or error
                        held_back.add(_order_of(operation))
        finally:
            self._set_aside(refused)
            self._forget(lines, ended)
        return first_error

    def _forget(self, seen: Sequence[str], ended: set[int]) -> None:
        """Write the file anew without the lines that have ended, and with what was appended meanwhile."""
        with self._file_lock:
            lines = self._lines()
            rest = [line for index, line in enumerate(lines) if index not in ended]
            if rest:
                atomic_write(self.path, "".join(f"{line}\n" for line in rest))
            else:
                self.path.unlink(missing_ok=True)
        for index in ended:
            if (operation := _parse(seen[index])) is not None:
                self._done(operation)

    def _lines(self) -> list[str]:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [line for line in text.split("\n") if line]


class Spool:
    """The operations of one run that the store has not taken yet, and files that belong to them."""

    def __init__(self, directory: Path, run_id: str) -> None:
        self.run_id = run_id
        self.files = directory / run_id
        self.refused = directory / f"{run_id}{REFUSED}"
        self.records = Lane(directory / f"{run_id}.jsonl", self.set_aside, self.discard_file)
        self.artifacts = Lane(directory / f"{run_id}{ARTIFACTS}", self.set_aside, self.discard_file)

    @property
    def runs(self) -> Path:
        """The folder of runs that it lies in."""
        return self.files.parents[2]

    @property
    def is_empty(self) -> bool:
        return self.records.is_empty and self.artifacts.is_empty

    def lane_of(self, operation: Operation) -> Lane:
        return self.artifacts if operation["op"] in ARTIFACT_OPERATIONS else self.records

    def append(self, operation: Operation) -> None:
        """Keep an operation; the file of an artifact is one of ours already.

        Raises:
            OSError: it cannot be kept.
        """
        self.lane_of(operation).append(operation)

    def replay(self, apply: Apply) -> None:
        """Apply what is kept; what fails stays, and its error is raised."""
        self.records.replay(apply)
        self.artifacts.replay(apply)  # not while the store is away: it is asked where artifacts go

    def points(self) -> Points:
        """Return every point that waits to be recorded."""
        waiting = [*self.records.operations(), *self.artifacts.operations()]
        return {
            (name, step): (value, time_ms)
            for operation in waiting
            for name, value, time_ms, step in operation.get("points", ())
        }

    def new_file(self, name: str) -> Path:
        """Return where to write the file of an artifact before it is recorded."""
        path = self.files / uuid.uuid4().hex / name
        path.parent.mkdir(parents=True)
        return path

    def file_of(self, operation: Operation) -> Path:
        """Return an artifact's file; the folder of runs may have been moved since it was written."""
        return self.files.joinpath(*Path(operation["path"]).parts[-2:])

    def discard_file(self, operation: Operation) -> None:
        """Remove the file of an artifact that waits no more, unless it is kept with what was refused."""
        if operation["op"] == "artifact" and not self._is_refused(operation):
            shutil.rmtree(self.file_of(operation).parent, ignore_errors=True)
        with suppress(OSError):  # others are in it, or it never was
            self.files.rmdir()

    def set_aside(self, operations: Sequence[Operation]) -> None:
        """Keep what was refused for good where it blocks nothing, and is not tried again."""
        if not operations:
            return
        self.refused.parent.mkdir(parents=True, exist_ok=True)
        with self.refused.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(operation) + "\n" for operation in operations)
        logger.warning(
            "part of run %s can never be recorded (%s): set aside, %d record(s), in %s",
            self.run_id,
            operations[0].get("refused"),
            len(operations),
            self.refused,
        )

    def _is_refused(self, operation: Operation) -> bool:
        return self.refused.exists() and json.dumps(operation["path"]) in self.refused.read_text("utf-8")


def spooled_runs(directory: Path) -> Iterator[str]:
    """Yield the id of every run of which something waits."""
    names = {path.name for path in directory.glob("*.jsonl") if not path.name.endswith(REFUSED)}
    yield from sorted({name.partition(".")[0] for name in names})


def _order_of(operation: Operation) -> str:
    """Return what operations have in common that must be recorded in their order."""
    if operation["op"] == "artifact":
        return f"artifact {operation['name']}"
    return "models" if operation["op"] in ARTIFACT_OPERATIONS else "records"


def _parse(line: str) -> Operation | None:
    """Return the line's operation, or None for one torn by a crash or a full disk."""
    try:
        operation = json.loads(line)
    except json.JSONDecodeError:
        return None
    return operation if isinstance(operation, dict) and "op" in operation else None
