"""Any tree of class folders, with or without ``train/``, ``val/`` and ``test/`` above them.

Files that cannot be read are listed, never fatal, as long as every class keeps some that can.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from harness.data.cache import (
    BROKEN,
    DecodedSet,
    Description,
    PartName,
    create_images,
    finish_part,
    load_or_build,
)
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
NAMES_SHOWN = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFile:
    """One file that looks like an image, and what its place in the tree says about it."""

    path: str  # relative to the data folder
    part: PartName
    class_name: str


def load(data_dir: Path, cache_dir: Path, decode_size: int) -> DecodedSet:
    """Return the tree's images, each resized and cropped to a square of `decode_size` pixels.

    Raises:
        DataError: If there is no tree, no image, or only one class.
    """
    root = data_dir.expanduser().resolve()
    listing = list_images(root)
    class_names = _class_names(root, listing)
    key = f"folder-{_cache_key(root, decode_size, listing)}"
    decoded = load_or_build(
        cache_dir, key, lambda staging: _build(staging, root, decode_size, (listing, class_names))
    )
    _warn_of_broken(root, decoded.about.broken_files, len(listing))
    return decoded


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


def _build(
    staging: Path, root: Path, decode_size: int, content: tuple[list[ImageFile], tuple[str, ...]]
) -> Description:
    listing, class_names = content
    broken: list[str] = []
    for part in dict.fromkeys(file.part for file in listing):
        in_part = [file for file in listing if file.part == part]
        broken += _decode_part(staging, root, in_part, class_names, decode_size)
    return Description(root.name, class_names, f"{len(listing)} image files under {root}", tuple(broken))


def _decode_part(
    staging: Path, root: Path, in_part: list[ImageFile], class_names: tuple[str, ...], decode_size: int
) -> list[str]:
    """Decode the files of one part into their rows and return the names of those that cannot be read."""
    part = in_part[0].part
    images = create_images(staging, part, (len(in_part), decode_size, decode_size, 3))
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[file.class_name] for file in in_part], dtype=np.int64)

    def decode_into(row: int) -> None:
        try:
            images[row] = decode_image(root / in_part[row].path, decode_size)
        except MemoryError:
            raise
        except Exception as error:  # what a decoder raises at a damaged file is anybody's guess
            log.debug("%s: %r", in_part[row].path, error)
            labels[row] = BROKEN

    with warnings.catch_warnings(), ThreadPoolExecutor(DECODE_THREADS) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such files are refused instead
        list(pool.map(decode_into, range(len(in_part))))
    finish_part(staging, part, images, labels)
    return [_printable(in_part[row].path) for row in np.flatnonzero(labels == BROKEN)]


def _printable(path: str) -> str:
    """Return a name that can be printed and recorded, even where the file system's is not valid text."""
    return os.fsencode(path).decode("utf-8", errors="replace")


@functools.cache  # once a process, however often the folder is opened
def _warn_of_broken(root: Path, broken: tuple[str, ...], total: int) -> None:
    if broken:
        more = f" and {len(broken) - NAMES_SHOWN} more" if len(broken) > NAMES_SHOWN else ""
        shown = ", ".join(broken[:NAMES_SHOWN])
        log.warning("%d of %d image files in %s cannot be read: %s%s", len(broken), total, root, shown, more)
