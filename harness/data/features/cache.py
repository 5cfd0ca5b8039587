"""The feature cache: all entries in `data.cache_dir`/features, together below `data.feature_cache_gb`.

`open_features` finds or makes an entry, for `harness.training.cached_features`; `harness data --features`
lists or clears them. The name of an entry is a hash of everything that determines its activations, so an
entry is never stale: another backbone, other images or another image size give another name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap

from harness.data.features.entry import ABOUT, EntryLayout, FeatureEntry
from harness.errors import NO_SPACE

FORMAT = 2  # part of every entry's name; raise it when the meaning of an entry's files changes
RECENT_S = 600.0  # an entry used within this time is not evicted: a running sweep may need it
BLOCK = bytes(1 << 20)

log = logging.getLogger(__name__)


def feature_key(shaped_by: Mapping[str, Any]) -> str:
    """Return the name of an entry, 24 hex digits: a hash of all that determines its activations."""
    text = json.dumps({"format": FORMAT, **shaped_by}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def open_features(
    cache_dir: Path, key: str, num_rows: int, describe: Callable[[], EntryLayout | None], limit_bytes: float
) -> FeatureEntry | None:
    """Open an entry, or make an empty one; safe for processes that start at the same time.

    Args:
        cache_dir: The run's `data.cache_dir`.
        key: The entry's name, from `feature_key`.
        num_rows: The number of rows that the entry must have.
        describe: Called only if there is no entry: returns the layout of a new one, or None to make none.
        limit_bytes: For all entries together; the least recently used ones are evicted to stay below it.

    Returns:
        None if `describe` returned None, or if the entry does not fit.
    """
    root = features_root(cache_dir)
    root.mkdir(parents=True, exist_ok=True)
    folder = root / key
    with FileLock(root / f".{key}.lock"):
        entry = _open_entry(folder, num_rows)
        if entry is None and (layout := describe()) is not None:
            # One lock for the whole cache: two processes must not both count on the same free space.
            with FileLock(root / ".room.lock"):
                entry = _create_where_there_is_room(folder, layout, limit_bytes)
    if entry is not None:
        entry.touch()
    return entry


def features_root(cache_dir: Path) -> Path:
    """Return the folder of all entries."""
    return cache_dir / "features"


def _open_entry(folder: Path, num_rows: int) -> FeatureEntry | None:
    """Return the entry in a folder; remove it and return None where its files are damaged or misshapen."""
    if not folder.is_dir():
        return None
    try:
        entry = FeatureEntry(folder, EntryLayout.from_json((folder / ABOUT).read_text(encoding="utf-8")))
        for name, (shape, dtype) in entry.layout.arrays.items():
            array = entry.read(name)
            if array.shape != (num_rows, *shape) or array.dtype != np.dtype(dtype):
                raise ValueError(f"{name}.npy has shape {array.shape}")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        log.warning("the cached features in %s are damaged (%s) and will be computed again", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return entry


def _create_entry(folder: Path, layout: EntryLayout) -> FeatureEntry:
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed process; the caller holds the lock
    (staging / "done").mkdir(parents=True)
    try:
        for name, (shape, dtype) in layout.arrays.items():
            path = staging / f"{name}.npy"
            array = open_memmap(path, mode="w+", dtype=dtype, shape=(layout.num_rows, *shape))
            _allocate(path, array.offset, array.nbytes)
        (staging / ABOUT).write_text(layout.to_json(), encoding="utf-8")
        staging.replace(folder)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return FeatureEntry(folder, layout)


def _allocate(path: Path, start: int, num_bytes: int) -> None:
    """Allocate a file's blocks on disk now, so that filling it later cannot run out of space.

    Raises:
        OSError: The disk has too little space.
    """
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), start, num_bytes)
        except (AttributeError, OSError) as error:  # macOS has no such call, and some file systems neither
            if isinstance(error, OSError) and error.errno not in (
                errno.EOPNOTSUPP,
                errno.EINVAL,
                errno.ENOSYS,
            ):
                raise
            file.seek(start)
            for written in range(0, num_bytes, len(BLOCK)):
                file.write(BLOCK[: num_bytes - written])


# ── the limit ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class StoredFeatures:
    """An entry in a listing."""

    folder: Path
    num_bytes: int
    used: float  # the Unix time of its last use
    about: Mapping[str, Any]


def list_features(cache_dir: Path) -> list[StoredFeatures]:
    """Return all readable entries, the least recently used first."""
    found = []
    for about in features_root(cache_dir).glob(f"*/{ABOUT}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # being removed, or damaged
            layout = EntryLayout.from_json(about.read_text(encoding="utf-8"))
            found.append(StoredFeatures(about.parent, layout.num_bytes, about.stat().st_mtime, layout.about))
    return sorted(found, key=lambda stored: stored.used)


def clear_features(cache_dir: Path) -> int:
    """Remove all entries and return their bytes; running trials keep the files that they have mapped."""
    freed = sum(stored.num_bytes for stored in list_features(cache_dir))
    shutil.rmtree(features_root(cache_dir), ignore_errors=True)
    return freed


def _create_where_there_is_room(folder: Path, layout: EntryLayout, limit_bytes: float) -> FeatureEntry | None:
    """Make an entry, evicting others until it fits below the limit and on the disk.

    Returns:
        None if it does not fit even with all idle entries evicted.
    """
    stored = list_features(folder.parent.parent)
    idle = [entry for entry in stored if time.time() - entry.used > RECENT_S]
    held = sum(entry.num_bytes for entry in stored)
    # Each round either makes the entry, evicts one, or gives up. An entry that is larger than the limit is
    # never tried, so that it evicts nothing in vain.
    while layout.num_bytes <= limit_bytes:
        if held + layout.num_bytes <= limit_bytes:
            try:
                return _create_entry(folder, layout)
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
        if not idle:
            break
        evicted = idle.pop(0)
        log.info("features: removed %s (%.1f GB) to make room", evicted.folder.name, evicted.num_bytes / 1e9)
        shutil.rmtree(evicted.folder, ignore_errors=True)
        held -= evicted.num_bytes
    return None
