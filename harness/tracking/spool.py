"""What could not be recorded, kept on disk until it can be.

One file of JSON lines per run, one line per operation, in order. An operation is plain JSON and may be
applied twice without harm, so a crash between applying it and forgetting it costs nothing.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

LOCK_TIMEOUT_S = 30.0

Operation = dict[str, Any]  # {"op": name, ...}, JSON types only


class Spool:
    """The operations of one run that the store has not taken yet."""

    def __init__(self, directory: Path, run_id: str) -> None:
        self.run_id = run_id
        self.path = directory / f"{run_id}.jsonl"
        self._files = directory / run_id  # copies of the artifacts that the operations name
        self._lock = FileLock(directory / f"{run_id}.lock", timeout=LOCK_TIMEOUT_S)

    def append(self, operation: Operation) -> None:
        """Keep an operation, with a copy of the artifact it names; the original may be a temporary file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if operation["op"] == "artifact":
            operation = operation | {"path": self._copy(Path(operation["path"]))}
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(operation) + "\n")

    def replay(self, apply: Callable[[Operation], None]) -> None:
        """Apply what is kept, in order; what fails stays, with all after it, and its error is raised."""
        if not self.path.exists():
            return
        with self._lock:
            waiting = self._read()
            try:
                while waiting:
                    apply(waiting[0])
                    waiting.pop(0)
            finally:
                self._write(waiting)

    def _copy(self, source: Path) -> str:
        target = self._files / uuid.uuid4().hex / source.name
        target.parent.mkdir(parents=True)
        shutil.copyfile(source, target)
        return str(target.resolve())

    def _read(self) -> list[Operation]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:  # another process replayed it while we waited for the lock
            return []
        return [operation for operation in map(_parse, lines) if operation is not None]

    def _write(self, operations: list[Operation]) -> None:
        if operations:
            text = "".join(json.dumps(operation) + "\n" for operation in operations)
            partial = self.path.with_suffix(".partial")
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.path)
        else:
            self.path.unlink(missing_ok=True)
            shutil.rmtree(self._files, ignore_errors=True)


def spooled_runs(directory: Path) -> Iterator[Spool]:
    """Return the spool of every run that has one."""
    for path in sorted(directory.glob("*.jsonl")):
        yield Spool(directory, path.stem)


def _parse(line: str) -> Operation | None:
    """Return the line's operation, or None for one torn by a crash or a full disk."""
    try:
        operation = json.loads(line)
    except json.JSONDecodeError:
        return None
    return operation if isinstance(operation, dict) and "op" in operation else None
