"""Writes a run's checkpoint files so that a crash cannot damage them, and detects files that are damaged.

`fit.py` gives :class:`AtomicCheckpointIO` to Lightning's Trainer. A file is written under a temporary name in
the same folder, synced and renamed into place; the file before it is kept as `<name>.previous.ckpt`, so one
of the two is whole at every instant. `checkpoint.py` calls :func:`verify_digest` before it loads a file,
and describes the content of a checkpoint.

A torch file is a zip. The SHA-256 of the file is stored as the zip's comment, so that the file and its digest
are copied and removed together, and `torch.load` reads the file as any other. The CRC-32s that torch writes
are not enough. They cover the records but not the zip's directory: one flipped bit there makes torch take a
tensor's record for a folder and return uninitialised memory as weights. For other damage to the directory
`torch.load` raises the same RuntimeError as for lack of memory. The digest tells the two apart: a resumed
run falls back to the previous file only if the newer one is damaged.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

from harness.errors import NO_SPACE, CheckpointError, DamagedCheckpointError, DiskFullError
from harness.files import free_bytes

NO_COMMENT = b"\0\0"  # the last two bytes of a zip without a comment: the comment's length
LABEL = b"sha256:"
COMMENT_BYTES = len(LABEL) + 64
SEAL_BYTES = len(NO_COMMENT) + COMMENT_BYTES
ZIP_END, ZIP_END_BYTES = b"PK\x05\x06", 22  # the last record of a zip, and its size without a comment

FILES_OF_A_RUN = 5  # best and last, the previous of each, and the one that is being written
READ_BYTES = 1 << 20


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoint files so that a crash or a power cut cannot leave them incomplete.

    Args:
        before_replace: called when the new file is complete, before it replaces the existing one. In a sweep
            it raises if another process has taken over this process' trial.
    """

    def __init__(self, before_replace: Callable[[], object] = lambda: None) -> None:
        self._before_replace = before_replace

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Replace the checkpoint at `path`, and keep the replaced one as `<name>.previous.ckpt`.

        Raises:
            DiskFullError: there is no room for it; the checkpoints on disk stay as they were.
            CheckpointError: the folder cannot be written.
        """
        target = Path(path)
        # With the PID: a suspended process that wakes must not write into its successor's file.
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        content = _HashedContent()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb", buffering=0) as file:
                content.write_to(file, checkpoint)
                # Synced before it is renamed, or a power cut could leave the new name on an empty file.
                os.fsync(file.fileno())
            self._before_replace()
            # Between these two renames there is no file at `path`; a resumed run then takes the previous one.
            if target.is_file():
                target.replace(previous_of(target))
            partial.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            raise _explain(error, target, content.num_bytes) from error
        finally:
            # After a success there is nothing to remove; after a failure the partial file is of no use.
            with contextlib.suppress(OSError):
                partial.unlink()


class _HashedContent:
    """The file object that `torch.save` writes to. It hashes the bytes and counts them.

    After a failed write it discards all further bytes and goes on counting, so that the message about a full
    disk can say how much room the checkpoint needs. The error is raised at the end: raised within
    `torch.save` it would come out as an unrelated RuntimeError.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._sha256 = hashlib.sha256()
        self._error: OSError | None = None

    def write_to(self, file: BinaryIO, checkpoint: dict[str, Any]) -> None:
        self._file = file
        torch.save(checkpoint, self)  # type: ignore[arg-type]  # `write` and `flush` are all it needs
        self._raise_error()
        # A zip ends with the length of its comment (2 bytes, 0 so far) and the comment: both are written
        # anew.
        file.seek(-len(NO_COMMENT), os.SEEK_CUR)
        self._write(memoryview(_seal(self._sha256.hexdigest())))
        self._raise_error()

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        self.num_bytes += view.nbytes
        self._sha256.update(view)
        self._write(view)
        return view.nbytes

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def _write(self, view: memoryview) -> None:
        try:
            while view and self._error is None:
                view = view[self._file.write(view) :]
        except OSError as error:
            self._error = error

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def previous_of(path: Path) -> Path:
    """Return the path under which the checkpoint replaced by `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def forget_previous(folder: Path) -> None:
    """Remove the `.previous.ckpt` files of a finished run, which only a resumed run would need."""
    _remove(folder, "*.previous.ckpt")


def verify_digest(path: Path) -> bool:
    """Compare a checkpoint file with the SHA-256 that was stored in it.

    Returns:
        True if they match; False if the file has no digest, because an earlier version wrote it.

    Raises:
        DamagedCheckpointError: they differ, or the disk fails to read the file.
        CheckpointError: this user may not read the file.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - SEAL_BYTES))
            seal = file.read()
            # A whole zip without a comment comes from an earlier version. A truncated one has no such ending.
            if seal[-ZIP_END_BYTES:].startswith(ZIP_END) and seal.endswith(NO_COMMENT):
                return False
            is_sound = size > SEAL_BYTES and seal == _seal(_digest(file, size - SEAL_BYTES))
    except PermissionError as error:
        raise CheckpointError(f"{path} may not be read: make it readable") from error
    except OSError as error:
        raise damaged(path, error.strerror or type(error).__name__) from error
    if not is_sound:
        raise damaged(path, "its SHA-256 does not match")
    return True


def damaged(path: Path, why: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{path} is damaged ({why}): delete it and train again")


def make_room(folder: Path, model: nn.Module, num_copies: int = 1) -> None:
    """Remove the partial files of killed writers, and check that this run's checkpoints will fit on the disk.

    Called before training, so that a full disk is noticed at once and not after hours.

    Args:
        num_copies: how often a file holds the weights: twice if an average of them is kept, too.

    Raises:
        DiskFullError: the checkpoints may not fit.
    """
    _remove(folder, ".*.partial")
    tensors = [*model.parameters(), *model.buffers()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Trainable parameters count three times: Adam, the largest of the optimisers, keeps two moments of each.
    bytes_a_file = sum(t.nbytes for t in (*tensors * num_copies, *trainable, *trainable))
    num_present = len(list(folder.glob("*.ckpt")))
    needed = bytes_a_file * max(1, FILES_OF_A_RUN - num_present)
    free = free_bytes(folder)
    if free < needed:
        raise DiskFullError(
            f"the checkpoints of this run may need {_megabytes(needed)} in {folder}, where "
            f"{_megabytes(free)} are free: make room there, or set tracking.dir to a larger disk"
        )


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)


def _seal(digest: str) -> bytes:
    return COMMENT_BYTES.to_bytes(2, "little") + LABEL + digest.encode()


def _digest(file: BinaryIO, num_bytes: int) -> str:
    """Return the SHA-256 of the first `num_bytes` and of the two bytes that the comment has replaced."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while num_bytes and (chunk := file.read(min(READ_BYTES, num_bytes))):
        sha256.update(chunk)
        num_bytes -= len(chunk)
    sha256.update(NO_COMMENT)
    return sha256.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that renames in it survive a power cut. Does nothing on systems other than POSIX."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, target: Path, num_bytes: int) -> CheckpointError:
    reason = error.strerror or type(error).__name__
    if error.errno not in NO_SPACE:
        return CheckpointError(f"cannot write {target} ({reason}): see to its folder and start the run again")
    fix = "raise the limit on file sizes (ulimit -f)" if error.errno == errno.EFBIG else "make room there"
    return DiskFullError(
        f"no room for {target}, {_megabytes(num_bytes)} ({reason}, {_megabytes(free_bytes(target.parent))} "
        f"free): {fix} and start the run again; its last complete epoch is kept"
    )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
