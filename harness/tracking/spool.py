"""Keeps on disk the operations of a run that MLflow cannot take now, and applies them later.

`MlflowTracker` appends to the spool of its run and replays it when MLflow is back; `open_store` replays the
spools that earlier processes left. `mlflow_writes.py` says what an operation is.

A run has two lanes, each a file of JSON lines with one operation per line. All operations in the lane of
records (metrics, parameters, tags, data sets, status) are applied in their order. In the lane of artifacts
and models, only the versions of one artifact are applied in order, and the models; so an artifact that cannot
be written delays no other. A crash between applying an operation and removing its line does no harm, since an
operation may be applied twice.

A lane has two locks. The file lock is held while a line is appended or the file is rewritten. The replay lock
is held during a whole replay, which may wait for the network. No process waits for the replay lock: one that
finds it taken leaves its operations to the process that holds it.
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
FILE_OPERATIONS = ("artifact", "image")  # each has a file in the spool
ARTIFACT_OPERATIONS = (*FILE_OPERATIONS, "model", "forget_models")

Operation = dict[str, Any]  # {"op": name, ...}, JSON types only
Points = dict[tuple[str, int], tuple[float, int]]  # (metric, step) -> value, milliseconds since 1970
Apply = Callable[[Operation], Sequence[Operation]]  # writes to MLflow; returns what is refused for good


class Lane:
    """A file of operations that wait.

    Args:
        set_aside: called with the operations that the store refused for good.
        done: called with each operation that has left the file.
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
        """Append an operation to the file.

        Raises:
            OSError: it cannot be written; nothing of it is left in the file.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(operation).encode() + b"\n"
        with self._file_lock, self.path.open("a+b", buffering=0) as file:
            size = file.seek(0, 2)
            # A process that was killed in the midst of its line left no line break. Begin a new line, so that
            # only the torn one is lost.
            if size:
                file.seek(-1, 2)
                line = line if file.read(1) == b"\n" else b"\n" + line
            try:
                # Unbuffered, so a full disk is noticed here: it writes a part of the line and raises nothing.
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, "no space left")
            except OSError:
                file.truncate(size)
                raise

    def operations(self) -> list[Operation]:
        """Return the operations that wait."""
        if self.is_empty:
            return []
        with self._file_lock:
            return [operation for operation in map(_parse, self._lines()) if operation is not None]

    def holds_back(self, operation: Operation) -> bool:
        """Return whether an operation waits that must be recorded before this one."""
        return any(_order_of(waiting) == _order_of(operation) for waiting in self.operations())

    def replay(self, apply: Apply) -> None:
        """Apply the operations that wait, unless another process is doing so.

        An operation that fails stays, with those that must come after it. Then the first error is raised.
        """
        # Again until the file is empty: processes that found the replay lock taken have appended meanwhile.
        while not self.is_empty:
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
                if operation is None:  # a kill tore the line
                    ended.add(index)
                elif _order_of(operation) not in held_back:
                    try:
                        refused += apply(operation)
                        ended.add(index)
                    except Exception as error:
                        first_error = first_error or error
                        held_back.add(_order_of(operation))
        finally:  # also if this process is interrupted: what was applied is not applied again
            self._set_aside(refused)
            self._forget(lines, ended)
        return first_error

    def _forget(self, seen: Sequence[str], ended: set[int]) -> None:
        """Remove lines from the file.

        Args:
            seen: the file's lines when the replay began.
            ended: the positions of the lines to be removed.
        """
        with self._file_lock:
            # The file may have grown since `seen` was read. Lines are only ever appended, and only the holder
            # of the replay lock removes any, so positions are still the same.
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
    """The operations of one run that the store has not taken yet, and the files that belong to them.

    Args:
        directory: the store's folder of spools, `RunStore.spool_directory`.
    """

    def __init__(self, directory: Path, run_id: str) -> None:
        self.run_id = run_id
        self.files = directory / run_id
        self.refused = directory / f"{run_id}{REFUSED}"
        self.records = Lane(directory / f"{run_id}.jsonl", self.set_aside, self.discard_file)
        self.artifacts = Lane(directory / f"{run_id}{ARTIFACTS}", self.set_aside, self.discard_file)

    @property
    def runs(self) -> Path:
        """The folder of runs that the spool lies in."""
        return self.files.parents[2]

    @property
    def is_empty(self) -> bool:
        return self.records.is_empty and self.artifacts.is_empty

    def lane_of(self, operation: Operation) -> Lane:
        return self.artifacts if operation["op"] in ARTIFACT_OPERATIONS else self.records

    def append(self, operation: Operation) -> None:
        """Append an operation to its lane; an artifact's file was made by `new_file`.

        Raises:
            OSError: it cannot be written.
        """
        self.lane_of(operation).append(operation)

    def replay(self, apply: Apply) -> None:
        """Apply the operations that wait in both lanes, as `Lane.replay` does."""
        self.records.replay(apply)
        # This line is reached only if no record failed: `replay` raises otherwise. Each upload first asks
        # MLflow where the run's artifacts go, so with an unreachable MLflow each would wait for a timeout.
        self.artifacts.replay(apply)

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
        """Return an artifact's file."""
        # By its last two parts alone: earlier versions recorded an absolute path, and the folder of runs may
        # have been moved since.
        return self.files.joinpath(*Path(operation["path"]).parts[-2:])

    def discard_file(self, operation: Operation) -> None:
        """Remove an artifact's file once its operation no longer waits; the file of a refused one is kept."""
        if operation["op"] in FILE_OPERATIONS and not self._is_refused(operation):
            shutil.rmtree(self.file_of(operation).parent, ignore_errors=True)
        with suppress(OSError):  # the folder holds other files, or does not exist
            self.files.rmdir()

    def set_aside(self, operations: Sequence[Operation]) -> None:
        """Move operations that were refused for good to a file that is never replayed."""
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
    """Yield the id of every run that has waiting operations."""
    names = {path.name for path in directory.glob("*.jsonl") if not path.name.endswith(REFUSED)}
    yield from sorted({name.partition(".")[0] for name in names})


def _order_of(operation: Operation) -> str:
    """Return a key: operations of one lane with the same key must be recorded in their order."""
    if operation["op"] == "artifact":
        return f"artifact {operation['name']}"
    if operation["op"] == "image":
        return f"image {operation['key']} {operation['step']}"
    return "models" if operation["op"] in ARTIFACT_OPERATIONS else "records"


def _parse(line: str) -> Operation | None:
    """Return the operation on a line, or None for a line that a crash or a full disk tore."""
    try:
        operation = json.loads(line)
    except json.JSONDecodeError:
        return None
    return operation if isinstance(operation, dict) and "op" in operation else None
