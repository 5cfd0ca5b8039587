"""One entry of the feature cache: the activations of a frozen backbone for all images of a run, on disk.

    about.json       the layout: rows, shapes, dtypes, and facts about the model and the data
    NAME.npy         one array of activations, a row for each image and view
    done/START.json  checksums of the chunk of rows that begins at START: the chunk is complete

`harness.training.cached_features` computes entries and reads them; `cache.py` makes, finds and evicts them.
A chunk whose checksum does not match (a process was killed while writing, or the disk is damaged) is computed
again. Several processes that need the same entry compute different chunks of it at the same time.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib.format import open_memmap

from harness.files import atomic_write

CHUNK_ROWS = 1024
WAIT_S = 0.05  # between two checks of the chunks that other processes are computing

ABOUT = "about.json"
OVERFLOW = "overflow"  # a marker file in an entry's folder: a value in it was beyond float16

Compute = Callable[
    [int, int], Mapping[str, np.ndarray]
]  # (first row, one past the last) → rows of each array


class HalfOverflowError(Exception):
    """An activation is beyond the range of float16; the caller makes an entry of float32 instead."""


@dataclass(frozen=True)
class EntryLayout:
    """The arrays that an entry holds.

    Args:
        num_rows: Rows of each array.
        arrays: Shape of a row and dtype ("float16" or "float32"), by the array's name.
        about: JSON values that describe the entry: the model's name and the like for people, and the
            boundaries, which `harness.training.cached_features` reads back.
    """

    num_rows: int
    arrays: Mapping[str, tuple[tuple[int, ...], str]]
    about: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        rows = (math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.arrays.values())
        return self.num_rows * sum(rows)

    def to_json(self) -> str:
        return json.dumps({"num_rows": self.num_rows, "arrays": self.arrays, "about": self.about}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> EntryLayout:
        read = json.loads(text)
        arrays = {name: (tuple(shape), dtype) for name, (shape, dtype) in read["arrays"].items()}
        return cls(read["num_rows"], arrays, read["about"])


class FeatureEntry:
    """An entry that exists on disk: its arrays can be read, and missing chunks of them computed."""

    def __init__(self, folder: Path, layout: EntryLayout) -> None:
        self.folder = folder
        self.layout = layout

    def read(self, name: str) -> np.memmap:
        """Return a read-only memory map of an array; rows of chunks that are not done yet are zeros."""
        return open_memmap(self._path(name), mode="r")

    def complete(self, names: Sequence[str], compute: Compute, stop_requested: Callable[[], bool]) -> bool:
        """Wait until every chunk is complete, computing those that no other process computes.

        Args:
            names: The arrays whose checksums are compared; the others are not read.
            compute: Given the first row and the one past the last; returns those rows of every array.
            stop_requested: Called between chunks.

        Returns:
            False if `stop_requested` returned True before the end; chunks computed so far stay.

        Raises:
            HalfOverflowError: The entry is float16, and an activation does not fit.
            OSError: The disk is full although the space was allocated.
        """
        if (self.folder / OVERFLOW).exists():
            raise HalfOverflowError
        arrays = {name: self.read(name) for name in self.layout.arrays}
        missing = [start for start in self._starts() if not self._is_done(start, arrays, names)]
        while missing and not stop_requested():
            before = len(missing)
            for start in list(missing):
                if stop_requested():
                    return False
                # A locked chunk is being computed by another process: go on with the next one.
                with contextlib.suppress(Timeout), self._lock(start):
                    # Another process may have completed it since `missing` was listed.
                    if not self._is_done(start, arrays, names):
                        self._fill(start, arrays, compute)
                    missing.remove(start)
            if len(missing) == before:  # all that is missing is locked by others
                time.sleep(WAIT_S)
        return not missing

    @property
    def is_marked_complete(self) -> bool:
        """Whether every chunk is marked as done; `complete` compares the checksums, too."""
        return not (self.folder / OVERFLOW).exists() and all(
            self._mark(start).exists() for start in self._starts()
        )

    def _starts(self) -> range:
        return range(0, self.layout.num_rows, CHUNK_ROWS)

    def _fill(self, start: int, arrays: Mapping[str, np.memmap], compute: Compute) -> None:
        stop = min(start + CHUNK_ROWS, self.layout.num_rows)
        sums = {}
        for name, rows in compute(start, stop).items():
            kept = self._cast(rows, arrays[name].dtype)
            # Written by a call, not through the memory map: a full disk then raises OSError, where a write
            # to mapped memory would end the process by SIGBUS.
            with self._path(name).open("r+b") as file:
                file.seek(arrays[name].offset + start * arrays[name].strides[0])
                file.write(kept.data)
            sums[name] = _checksum(kept)
        # done/START.json is written last, by a rename: if the process is killed before, the chunk is missing.
        atomic_write(self._mark(start), json.dumps(sums))
        self.touch()

    def _cast(self, rows: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        with np.errstate(over="ignore"):
            kept = np.ascontiguousarray(rows, dtype)
        if dtype == np.float16 and not np.isfinite(kept).all():
            (self.folder / OVERFLOW).touch()
            raise HalfOverflowError
        return kept

    def _is_done(self, start: int, arrays: Mapping[str, np.memmap], names: Sequence[str]) -> bool:
        try:
            sums = json.loads(self._mark(start).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        return all(sums.get(name) == _checksum(arrays[name][start : start + CHUNK_ROWS]) for name in names)

    def touch(self) -> None:
        """Mark the entry as used now; the least recently used entries are evicted first."""
        (self.folder / ABOUT).touch()

    def _lock(self, start: int) -> FileLock:
        return FileLock(self.folder / "done" / f"{start}.lock", blocking=False)

    def _mark(self, start: int) -> Path:
        return self.folder / "done" / f"{start}.json"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def _checksum(rows: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(rows).data)  # at 3 GB/s; it detects accidents, not attacks
