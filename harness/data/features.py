"""Activations of frozen backbones on disk: computed once, together, and memory-mapped by every process.

An entry is a folder: `about.json`, one plain `.npy` file for each array, and `done/` with a mark for each
chunk of rows. A mark holds checksums, so a chunk counts only while its rows are what was written: one that
a kill tore or a disk damaged is simply computed again. Processes that want the same entry share the work,
chunk by chunk, and none waits while there is a chunk to do. Files take their whole space when they are made,
and are written by calls rather than through memory: a full disk is an error to answer, never a SIGBUS.
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

CHUNK_ROWS = 1024
WAIT_S = 0.05  # between looks at chunks that other processes compute

ABOUT = "about.json"
OVERFLOW = "overflow"  # in an entry's folder: something in it is beyond float16

Compute = Callable[[int, int], Mapping[str, np.ndarray]]  # first and last row → rows of each array


class HalfOverflowError(Exception):
    """Activations are beyond what float16 holds: they have to be kept in float32."""


@dataclass(frozen=True)
class Layout:
    """What an entry holds.

    Args:
        num_rows: of each array.
        arrays: shape of a row and dtype ("float16" or "float32"), by the array's name.
        about: plain values for whoever opens the entry.
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
    def from_json(cls, text: str) -> Layout:
        read = json.loads(text)
        arrays = {name: (tuple(shape), dtype) for name, (shape, dtype) in read["arrays"].items()}
        return cls(read["num_rows"], arrays, read["about"])


class FeatureEntry:
    """One entry of the cache, open for reading and for filling."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self.layout = layout

    def read(self, name: str) -> np.memmap:
        """Return a read-only memory map of an array, complete or not."""
        return open_memmap(self._path(name), mode="r")

    def complete(self, names: Sequence[str], compute: Compute, stop_requested: Callable[[], bool]) -> bool:
        """Have every chunk that is missing or damaged computed, by this process or by another.

        Args:
            names: the arrays that must be right; the others are not read.
            compute: given the first row and the one past the last; returns all arrays' rows.
            stop_requested: asked between chunks.

        Returns:
            False where it was asked to stop before the end; what was computed stays.

        Raises:
            HalfOverflowError: the entry has halves, and they cannot hold the activations.
            OSError: there is no space left after all.
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
                with contextlib.suppress(Timeout), self._lock(start):
                    if not self._is_done(start, arrays, names):
                        self._fill(start, arrays, compute)
                    missing.remove(start)
            if len(missing) == before:
                time.sleep(WAIT_S)
        return not missing

    def _starts(self) -> range:
        return range(0, self.layout.num_rows, CHUNK_ROWS)

    def _fill(self, start: int, arrays: Mapping[str, np.memmap], compute: Compute) -> None:
        stop = min(start + CHUNK_ROWS, self.layout.num_rows)
        sums = {}
        for name, rows in compute(start, stop).items():
            kept = self._cast(rows, arrays[name].dtype)
            with self._path(name).open("r+b") as file:
                file.seek(arrays[name].offset + start * arrays[name].strides[0])
                file.write(kept.data)
            sums[name] = _checksum(kept)
        mark = self._mark(start)
        partial = mark.with_suffix(".partial")
        partial.write_text(json.dumps(sums), encoding="utf-8")
        partial.replace(mark)
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
        """Note that the entry is in use."""
        (self.folder / ABOUT).touch()

    def _lock(self, start: int) -> FileLock:
        return FileLock(self.folder / "done" / f"{start}.lock", blocking=False)

    def _mark(self, start: int) -> Path:
        return self.folder / "done" / f"{start}.json"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def _checksum(rows: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(rows).data)  # 3 GB a second; it is accidents that are looked for
