"""Writing a run's checkpoint files, and telling whether one is still what was written.

`fit.py` gives :class:`AtomicCheckpointIO` to Lightning's Trainer. A file is written under a temporary name in
the same folder, synced and renamed into place; the file before it is kept as `<name>.previous.ckpt`, so one
of the two is whole at every instant. `checkpoint.py` calls :func:`verify_digest` before it loads a file;
read on there for the content of a checkpoint.

A torch file is a zip. The SHA-256 of the file is stored as the zip's comment, so that the file and its digest
are copied and removed together, and `torch.load` reads the file as any other. The CRC-32s that torch writes
do not replace it. They cover the records but not the zip's directory: one flipped bit there makes torch take
a tensor's record for a folder and return uninitialised memory as weights. Other damage to the directory makes
`torch.load` raise the RuntimeError that it raises for lack of memory, and only damage may send a resumed run
to the previous file.
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

NO_COMMENT = b"\0\0"  # what ends a file as torch writes it: the length of the zip's comment
LABEL = b"sha256:"
COMMENT_BYTES = len(LABEL) + 64
SEAL_BYTES = len(NO_COMMENT) + COMMENT_BYTES
ZIP_END, ZIP_END_BYTES = b"PK\x05\x06", 22  # the record that ends a zip, where there is no comment

FILES_OF_A_RUN = 5  # best and last, the one before each, and the one that is being written
READ_BYTES = 1 << 20


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written so that a crash or a power cut cannot tear them.

    Args:
        before_replace: called when a file is whole and about to take the place of the one before; a process
            that has no business there any more ends in it.
    """

    def __init__(self, before_replace: Callable[[], object] = lambda: None) -> None:
        self._before_replace = before_replace

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Put a checkpoint in place of the one before it, which is kept.

        Raises:
            DiskFullError: there is no room for it; what was there stays as it was.
            CheckpointError: the folder cannot be written.
        """
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        content = _HashedContent()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb", buffering=0) as file:
                content.write_to(file, checkpoint)
                os.fsync(file.fileno())
            self._before_replace()
            if target.is_file():
                target.replace(previous_of(target))
            partial.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            raise _explain(error, target, content.num_bytes) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()


class _HashedContent:
    """What `torch.save` writes to: it hashes what passes.

    Where the disk is full it swallows the rest, so that what was needed is known; torch would make an
    unrelated RuntimeError of it.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._sha256 = hashlib.sha256()
        self._error: OSError | None = None

    def write_to(self, file: BinaryIO, checkpoint: dict[str, Any]) -> None:
        self._file = file
        torch.save(checkpoint, self)  # type: ignore[arg-type]  # `write` and `flush` are all it needs
        self._raise_error()
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
    """Return where the checkpoint that `path` replaced is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def forget_previous(folder: Path) -> None:
    """Remove what is kept for nothing but to resume a run from."""
    _remove(folder, "*.previous.ckpt")


def verify_digest(path: Path) -> bool:
    """Check that a file is what was written.

    Returns:
        False where that cannot be known: a checkpoint of an older version, without a digest.

    Raises:
        DamagedCheckpointError: it is not, or its disk does not give it back.
        CheckpointError: this user may not read it.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - SEAL_BYTES))
            seal = file.read()
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


def make_room(folder: Path, model: nn.Module) -> None:
    """Remove what killed writers left, and see that a run's checkpoints will fit before hours are spent.

    Raises:
        DiskFullError: they may not.
    """
    _remove(folder, ".*.partial")
    tensors = [*model.parameters(), *model.buffers()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    bytes_a_file = sum(t.nbytes for t in (*tensors, *trainable, *trainable))  # with Adam's two moments
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
    """Return the SHA-256 of the first bytes of a file as torch wrote it, before its comment was added."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while num_bytes and (chunk := file.read(min(READ_BYTES, num_bytes))):
        sha256.update(chunk)
        num_bytes -= len(chunk)
    sha256.update(NO_COMMENT)
    return sha256.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the renames durable too (POSIX; elsewhere folders cannot be opened)."""
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
