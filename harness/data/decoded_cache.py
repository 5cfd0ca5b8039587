"""Decoded images on disk: written once under a lock, memory-mapped by every process after that.

    meta.json            the format, a description of the source, shapes and checksums of the files below
    PART/images.npy      uint8 (N, H, W, 3); PART is train, val or test
    PART/labels.npy, hashes.npy, moments.npy, phashes.npy

Each source in `sources/` calls `load_or_build` with a function that decodes its images. A cache whose files
do not match its `meta.json` is removed and built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap

from harness.config.schema import PixelType
from harness.data.decoding.image_files import ImageFiles
from harness.errors import DataError

FORMAT = 3  # raise it when the files below, or the rules by which images become pixels, change
BROKEN = -1  # label of a row whose file could not be read
SPOT_CHECKS = 64  # images per part whose hash is compared at every opening
INDEX_FILES = ("labels", "hashes", "moments", "phashes")  # of a part; also fields of `Part`

PartName = Literal["train", "val", "test"]
Facts = tuple[np.ndarray, np.ndarray, np.ndarray]  # of images: hashes, moments, phashes
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One part of a source (train, val or test): its images, and facts computed from them once.

    Args:
        images: uint8 (N, H, W, 3), a read-only memory map, or the files if that would not fit in memory.
        labels: int64 (N,), ``BROKEN`` where the file could not be read.
        hashes: uint8 (N, 32), the sha256 of each image's pixels.
        moments: int64 (N, 2, 3), per channel the sum and the sum of squares of each image's pixels.
        phashes: uint8 (N, 8), see `perceptual_hashes`.
        names: File names, relative to the data folder; empty where images have no files of their own.
        groups: What `data.group_by` keeps together, by its name; an empty name: the image is in no group.
            An empty tuple where nothing is grouped.
        targets: Of multi-label images, uint8 (N, K): 1 for each label that an image has. `labels` then only
            say which files could be read. None where each image is of one class.
    """

    images: np.ndarray | ImageFiles
    labels: np.ndarray
    hashes: np.ndarray
    moments: np.ndarray
    phashes: np.ndarray
    names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    targets: np.ndarray | None = None

    def labels_at(self, rows: np.ndarray) -> np.ndarray:
        """Return the classes of some rows, int64 (n,); of multi-label images 0 and 1, float32 (n, K)."""
        return self.labels[rows] if self.targets is None else self.targets[rows].astype(np.float32)


@dataclass(frozen=True)
class Description:
    """A source's description of the images that it decoded.

    Args:
        pixel_range: For images of more than 8 bits a channel: the range of values that was scaled to
            0 … 255, by pixel type.
        notices: Messages to the user about the images, one line each.
        layout: The layout of the folder tree as it was understood, in a few words.
        passed_over: Files and folders in the tree that are not used, as (path, reason).
    """

    name: str
    class_names: tuple[str, ...]
    source: str
    broken_files: tuple[str, ...] = ()
    pixel_range: Mapping[PixelType, tuple[float, float]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    layout: str = ""
    passed_over: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class DecodedSet:
    """A whole data set, decoded."""

    about: Description
    parts: Mapping[PartName, Part]


Files = Callable[[Description], Mapping[PartName, ImageFiles]]


def load_or_build(
    cache_dir: Path, key: str, build: Callable[[Path], Description], files: Files | None = None
) -> DecodedSet:
    """Open the cache called `key`, or have `build` write it; safe for processes that start together.

    Args:
        cache_dir: The run's `data.cache_dir`.
        key: Name of the cache; it must differ for images that are decoded differently.
        build: Fills the directory that it is given, by `create_images` and `finish_part`.
        files: For a cache without pixels (`build` calls `write_index` only): returns the image files of each
            part, which are used in place of the array.

    Raises:
        DataError: If the cache directory cannot be written, or whatever `build` raises.
    """
    target = cache_dir / f"{key}-v{FORMAT}"
    if (found := open_cache(target, files)) is not None:
        return found
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache_dir / f".{target.name}.lock")
        with lock:
            # A process that had to wait for the lock finds the cache that another process has built.
            return open_cache(target, files) or _build(target, build, files)
    except OSError as error:
        raise DataError(
            f"cannot write the image cache in {cache_dir}: {error}; set data.cache_dir"
        ) from error


def _build(target: Path, build: Callable[[Path], Description], files: Files | None) -> DecodedSet:
    _remove_leftovers(target)
    staging = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    staging.mkdir()  # with the umask's permissions, unlike tempfile's: other users may share the cache
    try:
        about = build(staging)
        _write_meta(staging, about)
        if target.exists():
            shutil.rmtree(target)
        staging.replace(target)  # atomic: no process ever sees a cache that is half built
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    built = open_cache(target, files)
    assert built is not None, f"{target} does not open right after it was written"
    return built


def _remove_leftovers(target: Path) -> None:
    """Remove what a killed build of the same cache left; the caller holds the lock."""
    for leftover in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


# ── writing ───────────────────────────────────────────────────────────────────────────────────────


def create_images(directory: Path, part: PartName, shape: tuple[int, int, int, int]) -> np.memmap:
    """Create a part's image file to be filled row by row, so that it need not fit in memory."""
    size, free = math.prod(shape), shutil.disk_usage(directory).free
    if size > free:  # a full disk under a memory map is a SIGBUS, not an exception
        raise DataError(
            f"the decoded images need {size / 1e9:.1f} GB, {directory.parent} has {free / 1e9:.1f} GB left; "
            "set data.cache_dir to a larger disk"
        )
    folder = directory / part
    folder.mkdir()
    return open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)


def finish_part(directory: Path, part: PartName, images: np.memmap, labels: np.ndarray) -> None:
    """Write a part's labels, and the hashes, moments and perceptual hashes of its images."""
    images.flush()
    write_index(directory, part, labels, [pixel_facts(images)])


def write_index(directory: Path, part: PartName, labels: np.ndarray, facts: list[Facts]) -> None:
    """Write a part's labels, and the `pixel_facts` of its images in one piece or several."""
    folder = directory / part
    folder.mkdir(exist_ok=True)
    known = [np.concatenate(pieces) for pieces in zip(*facts, strict=True)]
    for name, values in zip(INDEX_FILES, [labels.astype(np.int64), *known], strict=True):
        np.save(folder / f"{name}.npy", values)


def pixel_facts(images: np.ndarray) -> Facts:
    """Return the hashes, moments and perceptual hashes of images, as they are kept in a `Part`."""
    return hash_images(images), _moments(images), perceptual_hashes(images)


def hash_images(images: np.ndarray) -> np.ndarray:
    """Return each image's sha256, uint8 (N, 32)."""
    digests = b"".join(hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images)
    return np.frombuffer(digests, dtype=np.uint8).reshape(len(images), 32)


def _moments(images: np.ndarray, chunk: int = 512) -> np.ndarray:
    """Return sums and sums of squares per image and channel, as integers, which add up exactly."""
    found = np.empty((len(images), 2, 3), dtype=np.int64)
    num_pixels = images.shape[1] * images.shape[2]
    ones = np.ones(num_pixels)  # summing by a product is five times faster than along a short last axis
    for start in range(0, len(images), chunk):
        pixels = images[start : start + chunk].reshape(-1, num_pixels, 3).astype(np.float64)
        found[start : start + chunk, 0] = ones @ pixels
        found[start : start + chunk, 1] = ones @ np.square(pixels, out=pixels)
    return found


def perceptual_hashes(images: np.ndarray) -> np.ndarray:
    """Return each image's perceptual hash, uint8 (N, 8): 64 bits, of which similar images share most.

    Source: `imagehash.phash`, the signs of the lowest 8 x 8 frequencies (discrete cosine transform) of the
    image in grey and 32 x 32 pixels, about their median.
    """
    from imagehash import phash
    from PIL import Image

    bits = [phash(Image.fromarray(image)).hash.ravel() for image in images]
    return np.packbits(np.array(bits, dtype=bool).reshape(len(images), 64), axis=1)


def _write_meta(directory: Path, about: Description) -> None:
    parts = {
        folder.name: {
            "shape": _shape_on_disk(folder),
            "index_sha256": _index_digest(folder),
        }
        for folder in sorted(directory.iterdir())
    }
    meta = {"format": FORMAT, "about": asdict(about), "parts": parts}
    (directory / "meta.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")


def _shape_on_disk(folder: Path) -> list[int] | None:
    path = folder / "images.npy"
    return list(np.load(path, mmap_mode="r").shape) if path.exists() else None


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def open_cache(directory: Path, files: Files | None = None) -> DecodedSet | None:
    """Map a finished cache, or return None where there is none or it is damaged.

    Raises:
        DataError: it belongs to another user and is not readable.
    """
    if not directory.is_dir():
        return None
    try:
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        about = _description(meta["about"])
        listed = files(about) if files else {}
        parts = {
            name: _open_part(directory / name, expected, listed.get(name))
            for name, expected in meta["parts"].items()
        }
        return DecodedSet(about, parts)
    except PermissionError as error:
        raise DataError(
            f"the image cache {directory} cannot be read by this user ({error.strerror}); set data.cache_dir"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        log.warning("the image cache %s is damaged (%s) and will be rebuilt", directory, error)
        return None


def _description(about: dict[str, Any]) -> Description:
    lists = {key: tuple(about[key]) for key in ("class_names", "broken_files", "notices", "passed_over")}
    ranges = {kind: (low, high) for kind, (low, high) in about["pixel_range"].items()}
    return Description(**{**about, **lists, "pixel_range": ranges})


def _open_part(folder: Path, expected: dict[str, Any], files: ImageFiles | None) -> Part:
    if _index_digest(folder) != expected["index_sha256"]:
        raise ValueError("its index files changed")
    labels, hashes, moments, small = (np.load(folder / f"{name}.npy") for name in INDEX_FILES)
    if files is not None:
        return Part(files, labels, hashes, moments, small)
    images = np.load(folder / "images.npy", mmap_mode="r")
    if list(images.shape) != expected["shape"] or images.dtype != np.uint8:
        raise ValueError(f"images.npy has shape {images.shape}")
    _spot_check(images, hashes)
    return Part(images, labels, hashes, moments, small)


def _spot_check(images: np.ndarray, hashes: np.ndarray) -> None:
    """Compare some images with their hashes: all of them would cost seconds at every start."""
    rows = np.unique(np.linspace(0, len(images) - 1, SPOT_CHECKS).astype(np.int64))
    if not np.array_equal(hash_images(images[rows]), hashes[rows]):
        raise ValueError("its pixels changed")


def _index_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in INDEX_FILES:
        digest.update((folder / f"{name}.npy").read_bytes())
    return digest.hexdigest()


def content_digest(hashes: np.ndarray, labels: np.ndarray) -> str:
    """Return the sha256 of a set of labelled images, whatever their order.

    Args:
        labels: Classes (N,), or 0 and 1 (N, K).
    """
    columns = labels[:, None] if labels.ndim == 1 else labels
    label_bytes = np.ascontiguousarray(columns, dtype="<i8").view(np.uint8)
    records = np.ascontiguousarray(np.concatenate([hashes, label_bytes], axis=1))
    order = np.argsort(records.view(f"S{records.shape[1]}").ravel(), kind="stable")
    return hashlib.sha256(records[order].data).hexdigest()
