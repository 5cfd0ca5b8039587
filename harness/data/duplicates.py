"""Duplicates: images with equal pixels stay on one side of a split; similar images are only counted.

`splits.py` uses the first two functions so that no image is both trained on and tested on. Where the harness
makes the splits, all copies of an image go to the same split. Where the source gives the splits, test images
stay as they are: their copies are left out of training and validation, and copies of validation images are
left out of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from harness.data.decoded_cache import BROKEN, DecodedSet, Part, PartName
from harness.data.messages import counted
from harness.errors import NAMES_SHOWN, first_few
from harness.files import write_json

ALIKE = 4  # two images are called look-alikes if their perceptual hashes differ in at most so many bits
PLAIN = 2.0  # images are not compared if their pixels' standard deviation (of 255) is below this
PARTS: tuple[PartName, ...] = ("train", "val", "test")
BLOCK = 4096  # hashes compared at a time
MOST_PAIRS = 1e9  # of images that training compares: a few seconds, once

Side = tuple[Part, np.ndarray]  # a split: the part of the source, and its rows


def first_of_duplicates(part: Part, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each different image, and for every row the first row with the same image."""
    _, first, which = np.unique(_keys(part, rows), return_index=True, return_inverse=True)
    return rows[np.sort(first)], rows[first][which]


def without_duplicates_of(part: Part, rows: np.ndarray, other: Part, other_rows: np.ndarray) -> np.ndarray:
    """Return the rows whose image does not occur among the other rows."""
    return rows[~np.isin(_keys(part, rows), _keys(other, other_rows))]


def _keys(part: Part, rows: np.ndarray) -> np.ndarray:
    return keys_of(part.hashes[rows])


def keys_of(hashes_N32: np.ndarray) -> np.ndarray:
    """Return hashes as byte strings, (N,), which numpy can look up."""
    hashes = np.ascontiguousarray(hashes_N32)
    return hashes.view(f"S{hashes.shape[1]}").ravel()


def describe_duplicates(decoded: DecodedSet) -> list[str]:
    """Return messages to the user about the copies that a source holds, and how they are treated."""
    known: dict[PartName, Part] = {name: decoded.parts[name] for name in PARTS if name in decoded.parts}
    parts = {name: (part, np.flatnonzero(part.labels != BROKEN)) for name, part in known.items()}
    keys = np.concatenate([_keys(part, rows) for part, rows in parts.values()])
    labels = np.concatenate([part.labels_at(rows) for part, rows in parts.values()])
    is_multilabel = labels.ndim == 2
    if is_multilabel:  # a number for each set of labels
        labels = np.unique(labels, axis=0, return_inverse=True)[1].ravel()
    where = np.concatenate([np.full(len(rows), place) for place, (_, rows) in enumerate(parts.values())])
    _, which, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    if sizes.max(initial=1) == 1:
        return []
    names = [_name(part, row) for part, rows in parts.values() for row in rows]
    order = np.argsort(which, kind="stable")
    groups = [group for group in np.split(order, np.cumsum(sizes)[:-1]) if len(group) > 1]
    groups.sort(key=lambda group: int(group[0]))
    return [
        *_across(groups, where, names, list(parts)),
        *_conflicts(groups, labels, names, is_multilabel),
        *_within(groups, where, names),
    ]


def _name(part: Part, row: np.integer) -> str:
    return part.names[row] if part.names else f"image {row}"


def _across(
    groups: list[np.ndarray], where: np.ndarray, names: list[str], parts: list[PartName]
) -> list[str]:
    crossing = [group for group in groups if len(set(where[group])) > 1]
    if not crossing:
        return []
    lost = {"train": 0, "val": 0, "test": 0}
    for group in crossing:
        holders = [parts[place] for place in where[group]]
        keeper = next(part for part in ("test", "val", "train") if part in holders)
        for part in holders:
            lost[part] += part != keeper
    told = " and ".join(f"{number:,} of {part}" for part, number in lost.items() if number)
    examples = [" = ".join(names[row] for row in group[[0, -1]]) for group in crossing]
    found = counted(sum(lost.values()), "image is an exact copy", "images are exact copies")
    return [
        f"{found} of images of another split ({told}): left out, so that no score is of images that were "
        f"trained on: {first_few(examples, 3)}"
    ]


def _conflicts(
    groups: list[np.ndarray], labels: np.ndarray, names: list[str], is_multilabel: bool
) -> list[str]:
    torn = [group for group in groups if len(set(labels[group])) > 1]
    if not torn:
        return []
    examples = [" = ".join(names[row] for row in group[:3]) for group in torn]
    if is_multilabel:
        found = counted(len(torn), "image has", "images have")
        return [f"{found} copies with other labels: {first_few(examples, 3)}; correct the CSV file"]
    found = counted(len(torn), "image stands", "images stand")
    return [f"{found} under more than one class: {first_few(examples, 3)}; correct their labels"]


def _within(groups: list[np.ndarray], where: np.ndarray, names: list[str]) -> list[str]:
    inside = [group for group in groups if len(set(where[group])) < len(group)]
    if not inside:
        return []
    copies = sum(len(group) - len(set(where[group])) for group in inside)
    examples = [" = ".join(names[row] for row in group[:2]) for group in inside]
    found = counted(copies, "exact copy", "exact copies")
    return [f"{found} of other images, kept on one side of any split: {first_few(examples, 3)}"]


# ── look-alikes ───────────────────────────────────────────────────────────────────────────────────


def near_duplicates(sides: Mapping[str, Side]) -> list[str]:
    """Count validation and test images that look like a training image; return a line for each split.

    Args:
        sides: the part and the rows of "train", and of "val" and "test" or one of them.
    """
    lines = []
    for name, side in sides.items():
        if name != "train":
            lines += describe_alike(name, side, sides["train"], find_alike(side, sides["train"]))
    return lines


def find_alike(side: Side, train: Side) -> np.ndarray:
    """Return the images of a split that look like a training image, and the one most like each.

    Two images look alike if their perceptual hashes differ in at most `ALIKE` bits: images that were
    rescaled, compressed again, recoloured or hardly cropped. Images that are nearly of one colour (`PLAIN`)
    are not compared: they would all look alike.

    Returns:
        Positions among the rows of the split and among those of training, int64 (M, 2).
    """
    known, known_at = _signs(*train)
    patterns, own_at = _signs(*side)
    if not len(known) or not len(patterns):
        return np.empty((0, 2), dtype=np.int64)
    best, at = _nearest(patterns, known)
    alike = np.flatnonzero(best >= 64 - 2 * ALIKE)  # the product of two hashes: equal bits less others
    return np.stack([own_at[alike], known_at[at[alike]]], axis=1)


def describe_alike(name: str, side: Side, train: Side, alike: np.ndarray) -> list[str]:
    """Return a line about the look-alikes that `find_alike` has found; none where there are none."""
    if not len(alike):
        return []
    (part, rows), (train_part, train_rows) = side, train
    few = [
        f"{_name(part, rows[own])} ~ {_name(train_part, train_rows[other])}"
        for own, other in alike[: NAMES_SHOWN + 1]
    ]
    examples = [*few, *([""] * (len(alike) - len(few)))]  # counted, not named
    found = counted(len(alike), f"{name} image")
    look = "looks" if len(alike) == 1 else "look"
    return [f"{found} of {len(rows):,} {look} like a training image: {first_few(examples, 3)}"]


def alike_in_validation(
    val: Side, train: Side, cache_dir: Path, row_digest: str, most_pairs: float = MOST_PAIRS
) -> list[str]:
    """Return a line about validation images that look like a training image, found once for a data set.

    What was found is kept in the image cache, as 45,000 and 5,000 images take a second or two to compare.
    Splits of more than `most_pairs` pairs of images are not compared: `harness data` does it.

    Args:
        row_digest: identifies the images of both splits and their order.
    """
    if len(val[1]) * len(train[1]) > most_pairs:
        return []
    path = cache_dir / "look-alikes-2" / f"{row_digest[:32]}.json"
    try:
        alike = np.array(json.loads(path.read_text())["alike"], dtype=np.int64).reshape(-1, 2)
    except (OSError, ValueError, KeyError, TypeError):  # not compared yet, or the file is damaged
        alike = find_alike(val, train)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"alike": alike.tolist()})
    return describe_alike("val", val, train, alike)


def _signs(part: Part, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes' bits as -1 and 1, float32 (M, 64), of images that are not plain, and which rows."""
    pixels = part.images.shape[1] * part.images.shape[2]
    mean, square = np.moveaxis(part.moments[rows] / pixels, 1, 0)
    keep = (square - mean**2).max(axis=1) >= PLAIN**2
    bits = np.unpackbits(part.phashes[rows][keep], axis=1)
    return 2 * bits.astype(np.float32) - 1, np.flatnonzero(keep)


def _nearest(patterns: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each pattern's highest product with a known one, and the index of that one."""
    best, at = np.full(len(patterns), -np.inf, dtype=np.float32), np.zeros(len(patterns), dtype=np.int64)
    for start in range(0, len(known), BLOCK):
        for first in range(0, len(patterns), BLOCK):
            likeness = patterns[first : first + BLOCK] @ known[start : start + BLOCK].T
            nearest = likeness.argmax(axis=1)
            value = likeness[np.arange(len(nearest)), nearest]
            block = slice(first, first + BLOCK)
            better = value > best[block]
            best[block][better], at[block][better] = value[better], start + nearest[better]
    return best, at
