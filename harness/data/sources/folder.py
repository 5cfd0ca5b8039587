"""Any tree of class folders, with or without ``train/``, ``val/`` and ``test/`` above them.

Files that cannot be read are listed, never fatal, as long as every class keeps some that can.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from harness.config.schema import FolderData
from harness.data.cache import (
    BROKEN,
    DecodedSet,
    Description,
    PartName,
    create_images,
    load_or_build,
    pixel_facts,
    write_index,
)
from harness.data.files import ImageFiles, printable
from harness.data.sources.decode import EXTENSIONS, decode_image
from harness.errors import DataError

PART_FOLDERS: dict[str, PartName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
IGNORED_FOLDERS = ("__MACOSX", "__pycache__")
DECODE_THREADS = 4  # PIL lets go of the interpreter lock while it decodes
CHUNK = 512  # images decoded between two looks at their pixels
NAMES_SHOWN = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFile:
    """One file that looks like an image, and what its place in the tree says about it."""

    path: str  # relative to the data folder
    part: PartName
    class_name: str


def load(config: FolderData) -> DecodedSet:
    """Return the tree's images, each resized and cropped to a square of `decode_size` pixels.

    Where the squares would take more than `max_memory_share` of the memory, only what identifies them is
    cached, and their pixels stay in the files.

    Raises:
        DataError: If there is no tree, no image, or only one class.
    """
    root = Path(config.dir).expanduser().resolve()
    listing = list_images(root)
    class_names = _class_names(root, listing)
    files = {
        part: ImageFiles(
            root, tuple(f.path for f in listing if f.part == part), config.decode_size, config.num_workers
        )
        for part in dict.fromkeys(file.part for file in listing)
    }
    keeps_pixels = _decoded_bytes(files) <= config.max_memory_share * psutil.virtual_memory().total
    key = f"folder-{_cache_key(root, config.decode_size, listing)}{'' if keeps_pixels else '-index'}"

    def build(staging: Path) -> Description:
        broken = [
            path
            for part in files
            for path in _decode_part(
                staging, part, files[part], _labels(listing, part, class_names), keeps_pixels
            )
        ]
        return Description(root.name, class_names, f"{len(listing)} image files under {root}", tuple(broken))

    decoded = load_or_build(Path(config.cache_dir), key, build, None if keeps_pixels else files)
    _warn_of_broken(root, decoded.about.broken_files, len(listing))
    if not keeps_pixels:
        _warn_of_size(root, _decoded_bytes(files), config.max_memory_share)
    return decoded


def _decoded_bytes(files: Mapping[PartName, ImageFiles]) -> int:
    return sum(math.prod(part.shape) for part in files.values())


# ── what is there ─────────────────────────────────────────────────────────────────────────────────


def list_images(root: Path) -> list[ImageFile]:
    """List the image files of a tree in a fixed order; hidden files and other kinds are passed over."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; set data.dir (DATA_DIR) to a tree of class folders")
    try:
        found = [file for folder, part in _part_folders(root) for file in _list_part(root, folder, part)]
    except OSError as error:
        raise DataError(f"cannot read the folder {root}: {error}; check its permissions") from error
    if not found:
        raise DataError(
            f"there are no images in the class folders of {root}; expected e.g. {root.name}/cat/1.png "
            f"or {root.name}/train/cat/1.png, with one of {' '.join(EXTENSIONS)}"
        )
    return found


def _part_folders(root: Path) -> list[tuple[Path, PartName]]:
    names = {folder.name for folder in _subfolders(root)}
    if "train" in names:
        return [(root / name, part) for name, part in PART_FOLDERS.items() if name in names]
    if names and names <= set(PART_FOLDERS):
        raise DataError(f"{root} has {' and '.join(sorted(names))} but no train; add it or remove them")
    return [(root, "train")]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_visible(path.name))


def _list_part(root: Path, folder: Path, part: PartName) -> Iterator[ImageFile]:
    for class_folder in _subfolders(folder):
        for path in _walk(class_folder):
            yield ImageFile(str(path.relative_to(root)), part, class_folder.name)


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(filter(_is_visible, folders))
        for name in sorted(filter(_is_visible, names)):
            if name.lower().endswith(EXTENSIONS):
                yield Path(parent) / name


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in IGNORED_FOLDERS


def _class_names(root: Path, listing: list[ImageFile]) -> tuple[str, ...]:
    known = {file.class_name for file in listing if file.part == "train"}
    for file in listing:
        if file.class_name not in known:
            raise DataError(
                f"class {file.class_name!r} of {root / file.path} does not exist among the training classes; "
                "add it to train/ or remove it"
            )
    if len(known) < 2:
        raise DataError(
            f"{root} has images of one class only ({min(known)!r}); two class folders are the least"
        )
    return tuple(sorted(known))


def _cache_key(root: Path, decode_size: int, listing: list[ImageFile]) -> str:
    """Hash what decides the decoded arrays, cheaply: no file is opened."""
    facts = [str(root), decode_size, [(file.path, *_version(root / file.path)) for file in listing]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _version(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # e.g. a link to nowhere; decoding will list it as broken
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


# ── decoding ──────────────────────────────────────────────────────────────────────────────────────


def _labels(listing: list[ImageFile], part: PartName, class_names: tuple[str, ...]) -> np.ndarray:
    label_of = {name: label for label, name in enumerate(class_names)}
    return np.array([label_of[file.class_name] for file in listing if file.part == part], dtype=np.int64)


def _decode_part(
    staging: Path, part: PartName, files: ImageFiles, labels: np.ndarray, keeps_pixels: bool
) -> list[str]:
    """Decode the files of one part, write what is to be kept, and return the names of those unreadable."""
    images = create_images(staging, part, files.shape) if keeps_pixels else None
    facts = []
    with warnings.catch_warnings(), ThreadPoolExecutor(DECODE_THREADS) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such files are refused instead
        for start in range(0, len(labels), CHUNK):
            paths = files.paths[start : start + CHUNK]
            pixels = np.zeros((len(paths), *files.shape[1:]), np.uint8) if images is None else images[start:]
            decode = functools.partial(_decode_into, pixels, files)
            readable = np.array(list(pool.map(decode, range(len(paths)), paths)))
            labels[start : start + CHUNK][~readable] = BROKEN
            facts.append(pixel_facts(pixels[: len(paths)]))
    if images is not None:
        images.flush()
    write_index(staging, part, labels, facts)
    return [printable(files.paths[row]) for row in np.flatnonzero(labels == BROKEN)]


def _decode_into(pixels: np.ndarray, files: ImageFiles, row: int, path: str) -> bool:
    """Decode a file into a row and tell whether it could be read; if not, the row stays black."""
    try:
        pixels[row] = decode_image(files.root / path, files.size)
    except MemoryError:
        raise
    except Exception as error:  # what a decoder raises at a damaged file is anybody's guess
        log.debug("%s: %r", path, error)
        return False
    return True


@functools.cache  # once a process, however often the folder is opened
def _warn_of_broken(root: Path, broken: tuple[str, ...], total: int) -> None:
    if broken:
        more = f" and {len(broken) - NAMES_SHOWN} more" if len(broken) > NAMES_SHOWN else ""
        shown = ", ".join(broken[:NAMES_SHOWN])
        log.warning("%d of %d image files in %s cannot be read: %s%s", len(broken), total, root, shown, more)


@functools.cache
def _warn_of_size(root: Path, num_bytes: int, share: float) -> None:
    log.warning(
        "the images of %s take %.1f GB decoded, more than data.max_memory_share=%g of the memory: "
        "they are read from their files in every epoch",
        root,
        num_bytes / 1e9,
        share,
    )
