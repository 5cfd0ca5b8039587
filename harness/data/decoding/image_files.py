"""Images that are decoded from their files in every epoch, because decoded they would not fit in memory.

`ImageFiles` is used in place of the array of decoded images: the same rows in the same order, with the same
pixels. Worker processes decode ahead of training. `sources/folder.py` makes it; `splits.ImageArrays` reads
from it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from harness.data.decoding.decode import NO_RANGE, decode_image
from harness.data.decoding.pixels import PixelRange
from harness.data.messages import printable
from harness.errors import DataError
from harness.fork_server import start_fork_server
from harness.signals import leave_to_parent

if TYPE_CHECKING:
    from torch import Tensor

WORKERS_START = "forkserver"  # a fork of the training process would inherit its CUDA state and held locks


@dataclass(frozen=True)
class ImageFiles:
    """The images of one part, each decoded whenever it is asked for.

    Args:
        paths: Relative to `root`.
        size: Height and width of the decoded images, in pixels.
        num_workers: Processes that decode for `stream`; with 0 the calling process decodes.
        pixel_range: The data set's range of values for each pixel type of more than 8 bits.
    """

    root: Path
    paths: tuple[str, ...]
    size: int
    num_workers: int = 0
    pixel_range: PixelRange = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the array of decoded images."""
        return len(self.paths), self.size, self.size, 3

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """Return images as `ndarray.take` would, uint8 (B, H, W, 3), decoded in this process.

        Raises:
            DataError: If a file that was there has gone or changed into something else.
        """
        return decode_files(self.root, self._paths_of(rows), self.size, self.pixel_range)

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield `take(rows)` for each batch of rows, in their order, decoded ahead by worker processes.

        Raises:
            DataError: The same as from `take`, or if a worker dies.
        """
        import torch  # not above: prediction from a bundle decodes files without torch
        from torch.utils.data import DataLoader

        loader: DataLoader[Any] = DataLoader(
            _Decoder(self.root, self.size, dict(self.pixel_range)),  # type: ignore[arg-type]
            batch_size=None,  # what the sampler gives is a batch already
            sampler=[self._paths_of(rows) for rows in batches],
            num_workers=self.num_workers,
            collate_fn=_as_is,
            worker_init_fn=_start_worker,
            multiprocessing_context=_context() if self.num_workers else None,
            generator=torch.Generator(),  # else it would use the global generator, which dropout uses
        )
        try:
            for images in loader:
                if isinstance(images, str):
                    raise DataError(images)
                yield images.numpy()
        except (RuntimeError, OSError, EOFError) as error:  # the latter from a pipe to a worker
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"one of data.num_workers={self.num_workers} processes that decode images died, most likely "
                "for want of memory or of /dev/shm; lower it (0 decodes without them)"
            ) from error

    def _paths_of(self, rows: np.ndarray) -> list[str]:
        return [self.paths[row] for row in rows]


def decode_files(root: Path, paths: list[str], size: int, pixel_range: PixelRange = NO_RANGE) -> np.ndarray:
    """Return the images of files that could be read before, uint8 (B, size, size, 3)."""
    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such files are refused instead
        for row, path in enumerate(paths):
            try:
                images[row] = decode_image(root / path, size, pixel_range)
            except MemoryError:
                raise
            except Exception as error:  # a damaged file can make a decoder raise anything
                raise DataError(
                    f"{printable(path)} can no longer be read ({type(error).__name__}); "
                    f"put it back into {printable(str(root))}, or start anew without it"
                ) from error
    return images


# ── worker processes ──────────────────────────────────────────────────────────────────────────────


class _Decoder:
    """The data set that each worker holds; the paths of each batch are sent to it."""

    def __init__(self, root: Path, size: int, pixel_range: PixelRange) -> None:
        self.root = root
        self.size = size
        self.pixel_range = pixel_range

    def __getitem__(self, paths: list[str]) -> Tensor | str:
        """Return pixels, or in one line what went wrong: an exception would arrive wrapped in a traceback."""
        import torch

        try:
            return torch.from_numpy(decode_files(self.root, paths, self.size, self.pixel_range))
        except DataError as error:
            return str(error)


def _as_is(images: Any) -> Any:
    return images


def _context() -> multiprocessing.context.BaseContext:
    """Return the start method of workers: in each epoch they are forked from a server that imported torch.

    Each training process starts its own fork server. In a sweep this is not the server that the trials
    themselves are forked from.
    """
    context = multiprocessing.get_context(WORKERS_START)
    context.set_forkserver_preload([__name__, "torch.utils.data"])
    start_fork_server()
    return context


def _start_worker(worker_id: int) -> None:
    """Leave Ctrl-C to the training process, and exit when that process ends, for whatever reason.

    torch's own check compares the parent's PID, which under a fork server is the server's.
    """
    leave_to_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # the ranks of a run block it
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by somebody"
    parent.join()
    os._exit(0)
