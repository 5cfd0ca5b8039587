"""Activations of frozen backbones on disk: computed once, together, and memory-mapped by every process.

An entry is a folder: `about.json`, one plain `.npy` file for each array, and `done/` with a mark for each
chunk of rows. A mark holds checksums, so a chunk counts only while its rows are what was written: one that
a kill tore or a disk damaged is simply computed again. Processes that want the same entry share the work,
chunk by chunk, and none waits while there is a chunk to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib.format import open_memmap

FORMAT = 1  # raise it when the files below change their meaning
CHUNK_ROWS = 1024
RECENT_S = 600.0  # an entry used this recently is not evicted: a running sweep may need it
WAIT_S = 0.05  # between looks at chunks that other processes compute

ABOUT = "about.json"
log = logging.getLogger(__name__)

Compute = Callable[[int, int], Mapping[str, np.ndarray]]  # first and last row → rows of each array


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

    def read(self, name: str) -> np.ndarray:
        """Return a read-only memory map of an array, complete or not."""
        return np.load(self._path(name), mmap_mode="r")

    def complete(self, names: Sequence[str], compute: Compute, stop_requested: Callable[[], bool]) -> bool:
        """Have every chunk that is missing or damaged computed, by this process or by another.

        Args:
            names: the arrays that must be right; the others are not read.
            compute: given the first row and the one past the last; returns all arrays' rows.
            stop_requested: asked between chunks.

        Returns:
            False where it was asked to stop before the end; what was computed stays.
        """
        arrays = {name: open_memmap(self._path(name), mode="r+") for name in self.layout.arrays}
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

    def _fill(self, start: int, arrays: Mapping[str, np.ndarray], compute: Compute) -> None:
        stop = min(start + CHUNK_ROWS, self.layout.num_rows)
        sums = {}
        for name, rows in compute(start, stop).items():
            arrays[name][start:stop] = rows
            sums[name] = _checksum(arrays[name][start:stop])
        mark = self._mark(start)
        partial = mark.with_suffix(".partial")
        partial.write_text(json.dumps(sums), encoding="utf-8")
        partial.replace(mark)
        self.touch()

    def _is_done(self, start: int, arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> bool:
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


# ── opening ───────────────────────────────────────────────────────────────────────────────────────


def feature_key(shaped_by: Mapping[str, Any]) -> str:
    """Return the name of the entry that everything in `shaped_by` (plain values) shapes."""
    text = json.dumps({"format": FORMAT, **shaped_by}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def open_features(
    cache_dir: Path, key: str, describe: Callable[[], Layout | None], limit_bytes: float
) -> FeatureEntry | None:
    """Open an entry, or make an empty one; safe for processes that start together.

    Args:
        describe: says what a new entry is to hold; None if it cannot be had.
        limit_bytes: of all entries together; the least recently used ones make room.

    Returns:
        None where `describe` gave None, or where there is no room.
    """
    root = features_root(cache_dir)
    root.mkdir(parents=True, exist_ok=True)
    folder = root / key
    with FileLock(root / f".{key}.lock"):
        entry = _open_entry(folder)
        if entry is None and (layout := describe()) is not None:
            with FileLock(root / ".room.lock"):
                entry = _create_entry(folder, layout) if _make_room(root, layout, limit_bytes) else None
    if entry is not None:
        entry.touch()
    return entry


def features_root(cache_dir: Path) -> Path:
    """Return the folder of all entries."""
    return cache_dir / "features"


def _open_entry(folder: Path) -> FeatureEntry | None:
    """Return an entry whose files have the right form; remove one whose files do not."""
    if not folder.is_dir():
        return None
    try:
        entry = FeatureEntry(folder, Layout.from_json((folder / ABOUT).read_text(encoding="utf-8")))
        for name, (shape, dtype) in entry.layout.arrays.items():
            array = entry.read(name)
            if array.shape != (entry.layout.num_rows, *shape) or array.dtype != np.dtype(dtype):
                raise ValueError(f"{name}.npy has shape {array.shape}")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        log.warning("the cached features in %s are damaged (%s) and will be computed again", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return entry


def _create_entry(folder: Path, layout: Layout) -> FeatureEntry:
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # a killed attempt's; the caller holds the lock
    (staging / "done").mkdir(parents=True)
    for name, (shape, dtype) in layout.arrays.items():
        open_memmap(staging / f"{name}.npy", mode="w+", dtype=dtype, shape=(layout.num_rows, *shape))
    (staging / ABOUT).write_text(layout.to_json(), encoding="utf-8")
    staging.replace(folder)
    return FeatureEntry(folder, layout)


# ── the limit ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class StoredFeatures:
    """An entry as seen from outside."""

    folder: Path
    num_bytes: int
    used: float  # seconds since the epoch
    about: Mapping[str, Any]


def list_features(cache_dir: Path) -> list[StoredFeatures]:
    """Return all entries, the least recently used one first."""
    found = []
    for about in features_root(cache_dir).glob(f"*/{ABOUT}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # being removed, or damaged
            layout = Layout.from_json(about.read_text(encoding="utf-8"))
            found.append(StoredFeatures(about.parent, layout.num_bytes, about.stat().st_mtime, layout.about))
    return sorted(found, key=lambda stored: stored.used)


def clear_features(cache_dir: Path) -> int:
    """Remove all entries and return how many bytes they held; running trials keep what they have mapped."""
    freed = sum(stored.num_bytes for stored in list_features(cache_dir))
    shutil.rmtree(features_root(cache_dir), ignore_errors=True)
    return freed


def _make_room(root: Path, layout: Layout, limit_bytes: float) -> bool:
    """Evict until the new entry fits below the limit and on the disk; False where it cannot."""
    stored = list_features(root.parent)
    idle = [entry for entry in stored if time.time() - entry.used > RECENT_S]
    held = sum(entry.num_bytes for entry in stored)
    while held + layout.num_bytes > limit_bytes or layout.num_bytes > shutil.disk_usage(root).free:
        if layout.num_bytes > limit_bytes or not idle:
            return False
        evicted = idle.pop(0)
        log.info("features: removed %s (%.1f GB) to make room", evicted.folder.name, evicted.num_bytes / 1e9)
        shutil.rmtree(evicted.folder, ignore_errors=True)
        held -= evicted.num_bytes
    return True
