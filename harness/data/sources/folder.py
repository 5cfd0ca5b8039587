"""The sources `data=folder` and `data=multilabel`: files of images, and their classes or labels.

`layout.py` finds classes and splits in a tree of folders, `labels_csv.py` labels in a CSV file; `decoding/`
decodes.
Files that cannot be read are listed and left out, as long as every class keeps readable training images.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from harness.config.schema import FolderData, MultiLabelData
from harness.data.decoded_cache import (
    BROKEN,
    DecodedSet,
    Description,
    PartName,
    create_images,
    load_or_build,
    pixel_facts,
    write_index,
)
from harness.data.decoding.decode import Inspection, decode_image, inspect_image
from harness.data.decoding.image_files import ImageFiles
from harness.data.decoding.pixels import PixelRange, is_squeezed, measure
from harness.data.duplicates import PARTS
from harness.data.groups import group_names, notices_of
from harness.data.messages import counted, printable, warn_once
from harness.data.sources.labels_csv import read_labelled_layout
from harness.data.sources.layout import Layout, describe_passed_over, read_layout
from harness.data.sources.scan import HIDDEN, PassedOver
from harness.errors import first_few

DECODE_THREADS = 4  # PIL releases the GIL while it decodes
CHUNK = 512  # images that are decoded before their hashes and moments are computed
log = logging.getLogger(__name__)

Inspections = Mapping[str, Inspection | None]  # by path; None for a file that cannot be read


@dataclass(frozen=True)
class Sources:
    """The files of each part, and how they are to be decoded."""

    layout: Layout
    decode_size: int
    num_workers: int

    def files(self, pixel_range: PixelRange) -> dict[PartName, ImageFiles]:
        """Return the files of each part, to be used in place of an array of decoded images."""
        layout = self.layout
        paths: dict[PartName, list[str]] = {}
        for file in layout.files:
            paths.setdefault(file.part, []).append(file.path)
        return {
            part: ImageFiles(layout.root, tuple(names), self.decode_size, self.num_workers, pixel_range)
            for part, names in paths.items()
        }

    def labels(self, part: PartName) -> np.ndarray:
        """Return the labels of a part's files, int64 (N,): of multi-label images 0, see `Part.targets`."""
        if self.layout.labels_of is not None:
            return np.zeros(sum(file.part == part for file in self.layout.files), dtype=np.int64)
        label_of = {name: label for label, name in enumerate(self.layout.class_names)}
        labels = [label_of[file.class_name] for file in self.layout.files if file.part == part]
        return np.array(labels, dtype=np.int64)

    def targets(self, part: PartName) -> np.ndarray | None:
        """Return the labels of a part's files, uint8 (N, K), if they are multi-label images."""
        if (labels_of := self.layout.labels_of) is None:
            return None
        return np.stack([labels_of[file.path] for file in self.layout.files if file.part == part])

    @property
    def num_bytes(self) -> int:
        """The bytes that all images take when they are decoded."""
        return sum(math.prod(part.shape) for part in self.files({}).values())


def load(config: FolderData) -> DecodedSet:
    """Return the tree's images, each resized and cropped to a square of `decode_size` pixels.

    If these would take more than `max_memory_share` of the memory, only their labels, hashes, moments and
    perceptual hashes are cached, and the files are decoded again in every epoch.

    Raises:
        DataError: If there is no tree, no image or only one class, or the tree can be read in two ways.
    """
    root = Path(config.dir).expanduser().resolve()
    layout = (
        read_labelled_layout(root, config)
        if isinstance(config, MultiLabelData)
        else read_layout(root, config.include, config.exclude)
    )
    sources = Sources(layout, config.decode_size, config.num_workers)
    keeps_pixels = sources.num_bytes <= config.max_memory_share * psutil.virtual_memory().total
    key = f"{config.kind}-{_cache_key(config, sources.layout)}{'' if keeps_pixels else '-index'}"
    decoded = load_or_build(
        Path(config.cache_dir),
        key,
        lambda staging: _build(staging, sources, config.pixel_range, keeps_pixels),
        None if keeps_pixels else lambda about: sources.files(about.pixel_range),
    )
    decoded = _describe(decoded, sources, config.group_by)
    _tell(printable(str(root)), decoded.about, len(sources.layout.files))
    if not keeps_pixels:
        _tell_of_size(printable(str(root)), sources.num_bytes, config.max_memory_share)
    return decoded


def _cache_key(config: FolderData, layout: Layout) -> str:
    """Return a hash of all that determines the decoded arrays; no file is opened for it."""
    files = [
        (file.path, file.part, file.class_name, *_version(layout.root / file.path)) for file in layout.files
    ]
    facts = [str(layout.root), config.decode_size, sorted(config.pixel_range.items()), files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _version(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # e.g. a link to nowhere; decoding will list it as broken
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _describe(decoded: DecodedSet, sources: Sources, group_by: str | None) -> DecodedSet:
    """Add what is read anew each time: notices, layout, unused files, and the files' names and groups."""
    layout = sources.layout
    groups, told = ({}, []) if group_by is None else _groups(layout, group_by)
    about = dataclasses.replace(
        decoded.about,
        class_names=layout.class_names,  # those of a CSV file may have changed since the images were decoded
        notices=(*layout.notices, *told, *decoded.about.notices),
        layout=layout.layout,
        passed_over=tuple((one.path, one.why) for one in layout.passed_over),
    )
    files = sources.files({})
    parts = {
        name: dataclasses.replace(
            part,
            names=tuple(map(printable, files[name].paths)),
            groups=groups.get(name, ()),
            targets=sources.targets(name),
        )
        for name, part in decoded.parts.items()
    }
    return DecodedSet(about, parts)


def _groups(layout: Layout, group_by: str) -> tuple[dict[PartName, tuple[str, ...]], list[str]]:
    """Return the group of each image of each part, and messages to the user about them."""
    files = {part: [file for file in layout.files if file.part == part] for part in PARTS}
    files = {part: found for part, found in files.items() if found}
    groups = {
        part: tuple(
            group_names([file.path for file in of_part], [file.class_folder for file in of_part], group_by)
        )
        for part, of_part in files.items()
    }
    paths = [file.path for of_part in files.values() for file in of_part]
    return groups, notices_of(groups, paths, group_by)


# ── decoding ──────────────────────────────────────────────────────────────────────────────────────


def _build(staging: Path, sources: Sources, chosen: PixelRange, keeps_pixels: bool) -> Description:
    layout = sources.layout
    broken: list[str] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(DECODE_THREADS) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such files are refused instead
        paths = [file.path for file in layout.files]
        inspections = dict(zip(paths, pool.map(functools.partial(_inspect, layout.root), paths), strict=True))
        ranges = [
            inspection.value_range
            for inspection in inspections.values()
            if inspection is not None and inspection.value_range is not None
        ]
        pixel_range = {**measure(ranges), **chosen}
        for part, files in sources.files(pixel_range).items():
            labels = sources.labels(part)
            _decode_part(staging, part, files, labels, keeps_pixels, pool.map)
            broken += [printable(files.paths[row]) for row in np.flatnonzero(labels == BROKEN)]
    return Description(
        printable(layout.root.name),
        layout.class_names,
        f"{counted(len(paths), 'image file')} under {printable(str(layout.root))}",
        tuple(broken),
        pixel_range,
        tuple(_notices(inspections, pixel_range)),
    )


def _inspect(root: Path, path: str) -> Inspection | None:
    try:
        return inspect_image(root / path)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can make a decoder raise anything
        log.debug("%s: %r", path, error)
        return None


def _notices(inspections: Inspections, pixel_range: PixelRange) -> Iterable[str]:
    """Yield messages about images of more than 8 bits a channel, and about files of several frames."""
    deep = {
        path: inspection.value_range
        for path, inspection in inspections.items()
        if inspection is not None and inspection.value_range is not None
    }
    for kind, (low, high) in pixel_range.items():
        ranges = {path: value_range for path, value_range in deep.items() if value_range.type == kind}
        if not ranges:
            continue
        yield (
            f"{counted(len(ranges), 'image')} of {kind} pixels: {low:g} … {high:g} becomes 0 … 255 "
            f"(data.pixel_range.{kind})"
        )
        squeezed = [
            printable(path) for path, value_range in ranges.items() if is_squeezed(value_range, low, high)
        ]
        if squeezed:
            yield (
                f"{counted(len(squeezed), 'image')} of {kind} pixels lose most of their levels so, and look "
                f"flat, black or white ({first_few(squeezed)}); set data.pixel_range.{kind}=[low,high]"
            )
    odd = [printable(path) for path, value_range in deep.items() if value_range.num_odd]
    if odd:
        found = counted(len(odd), "image")
        yield f"{found} with pixels that are NaN or infinite, shown as the range's ends ({first_few(odd)})"
    framed = [
        printable(path)
        for path, inspection in inspections.items()
        if inspection is not None and inspection.has_frames
    ]
    if framed:
        found = counted(len(framed), "file")
        yield f"{found} of several frames or pages: the first is taken ({first_few(framed)})"


def _decode_part(
    staging: Path,
    part: PartName,
    files: ImageFiles,
    labels: np.ndarray,
    keeps_pixels: bool,
    run: Callable[..., Iterable[bool]],
) -> None:
    """Decode the files of one part, write its cache, and set the labels of unreadable files to `BROKEN`."""
    images = create_images(staging, part, files.shape) if keeps_pixels else None
    facts = []
    for start in range(0, len(labels), CHUNK):
        paths = files.paths[start : start + CHUNK]
        pixels = np.zeros((len(paths), *files.shape[1:]), np.uint8) if images is None else images[start:]
        decode = functools.partial(_decode_into, pixels, files)
        readable = np.array(list(run(decode, range(len(paths)), paths)))
        labels[start : start + CHUNK][~readable] = BROKEN
        facts.append(pixel_facts(pixels[: len(paths)]))
    if images is not None:
        images.flush()
    write_index(staging, part, labels, facts)


def _decode_into(pixels: np.ndarray, files: ImageFiles, row: int, path: str) -> bool:
    """Decode a file into a row and tell whether it could be read; if not, the row stays black."""
    try:
        pixels[row] = decode_image(files.root / path, files.size, files.pixel_range)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can make a decoder raise anything
        log.debug("%s: %r", path, error)
        return False
    return True


# ── what the user is told ─────────────────────────────────────────────────────────────────────────


def _tell(root: str, about: Description, total: int) -> None:
    lines = [f"{root}: {notice}" for notice in about.notices]
    if about.broken_files:
        broken = list(about.broken_files)
        lines.append(
            f"{len(broken):,} of {total:,} image files in {root} cannot be read: {first_few(broken)}"
        )
    unused = [PassedOver(path, why) for path, why in about.passed_over if why != HIDDEN]
    if unused:
        lines.append(f"{root}: not used: {describe_passed_over(unused)}")
    warn_once(lines, of=root)


def _tell_of_size(root: str, num_bytes: int, share: float) -> None:
    line = (
        f"the images of {root} take {num_bytes / 1e9:.1f} GB decoded, more than "
        f"data.max_memory_share={share:g} of the memory: they are read from their files in every epoch"
    )
    warn_once([line], of=root)
