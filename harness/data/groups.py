"""`data.group_by`: images of one patient, burst or video stay on one side of every split that is made here.

`sources/folder.py` finds each image's group (`group_names`), `splits.py` sets whole groups aside
(`set_aside_groups`), and `summary.py` shows how many there are (`GroupSizes`). Copies of an image (see
`duplicates.py`) join the groups that they lie in, so neither rule breaks the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.data.decoded_cache import BROKEN, Part, PartName
from harness.data.duplicates import Side, first_of_duplicates
from harness.data.messages import counted, printable
from harness.errors import DataError, first_few

NEGLIGIBLE = 1e-9  # squared distance of shares, below which rounding decides
MOST_AT_ONCE = 200  # multi-label images that may change sides before all gains are computed again
FOLDER = "folder"  # as data.group_by: the folder directly below the class's folder


def group_names(paths: Sequence[str], below: Sequence[str], group_by: str) -> list[str]:
    """Return each image's group; empty for an image that is in none, and so is a group of its own.

    Args:
        paths: of the images, relative to the data folder.
        below: of the class folder that each image lies in, likewise.
        group_by: a regular expression with one group, searched for in the path; or `FOLDER`.
    """
    if group_by == FOLDER:
        inside = [
            path.removeprefix(folder).lstrip("/").split("/")
            for path, folder in zip(paths, below, strict=True)
        ]
        return [printable(parts[0]) if len(parts) > 1 else "" for parts in inside]
    pattern = re.compile(group_by)
    found = [pattern.search(printable(path)) for path in paths]
    return ["" if match is None else match[1] or "" for match in found]


def notices_of(groups: Mapping[PartName, tuple[str, ...]], paths: Sequence[str], group_by: str) -> list[str]:
    """Return what the user should know about the groups: images in none, groups on two sides of given splits.

    Args:
        groups: of each image, by the part of the source that it lies in.
        paths: of all images, in the order of the parts.

    Raises:
        DataError: no image is in a group, or all of them are in one.
    """
    names = [name for of_part in groups.values() for name in of_part]
    alone = [path for path, name in zip(paths, names, strict=True) if not name]
    asked = f"data.group_by={group_by!r}"
    if len(alone) == len(names):
        why = "no image lies in a folder below its class" if group_by == FOLDER else "matches no image's path"
        raise DataError(f"{asked}: {why}, such as {first_few(list(map(printable, alone)), 2)}; correct it")
    if len(set(names)) == 1:
        raise DataError(
            f"{asked} puts all {len(names):,} images into one group, {names[0]!r}: nothing can be set aside; "
            "use a pattern that tells patients, bursts or videos apart"
        )
    lines = []
    if alone:
        found = counted(len(alone), "image is", "images are")
        shown = first_few(list(map(printable, alone)), 3)
        lines.append(f"{found} in no group by {asked}, each a group of its own: {shown}")
    parts = list(groups)
    for place, part in enumerate(parts):
        for other in parts[place + 1 :]:
            if both := sorted((set(groups[part]) & set(groups[other])) - {""}):
                lines.append(
                    f"{counted(len(both), 'group lies', 'groups lie')} in both {part} and {other}, as the "
                    f"folders of the splits have it, so that scores flatter: {first_few(both, 3)}"
                )
    return lines


def joined_groups(part: Part, rows: np.ndarray) -> np.ndarray:
    """Return a number for each row: equal where images are of one group, or are joined by copies, int64 (N,).

    Without groups, only copies are joined. Two groups that hold copies of one image are one, so that both the
    groups and the copies keep together.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, first = first_of_duplicates(part, rows)
    if not part.groups:
        return np.unique(first, return_inverse=True)[1].astype(np.int64)
    nodes, image = np.unique(first, return_inverse=True)
    names = np.array([part.groups[row] or f"\0{row}" for row in rows])  # a name that no group can have
    found, group = np.unique(names, return_inverse=True)
    size = len(nodes) + len(found)
    links = coo_array((np.ones(len(rows)), (image, len(nodes) + group)), shape=(size, size))
    _, component = connected_components(links, directed=False)
    return np.unique(component[image], return_inverse=True)[1].astype(np.int64)


def set_aside_groups(
    part: Part, rows: np.ndarray, fraction: float, seed: int, names: Sequence[str], splits: Sequence[str]
) -> np.ndarray:
    """Pick whole groups with about `fraction` of each class's images; of each class at least one group.

    Multi-label images count for each of their labels, and once more among all images; without
    `data.group_by`, each of them is a group with its copies. (Iterative stratification, Sechidis et al. 2011,
    knows neither copies nor groups, and never changes what it has once placed.)

    Groups are drawn in an order that depends on the seed alone, and change sides as long as that brings the
    shares of the classes nearer to the fraction (least squares). scikit-learn's StratifiedGroupKFold knows
    only fractions of 1/n, and leaves folds or classes empty where groups are few.

    Args:
        rows: of the images to divide.
        names: of the classes, or labels.
        splits: that these images are for, such as ("training", "validation"); the last is picked here, and
            one group of each class is left for each of the others.

    Raises:
        DataError: a class has too few groups.
    """
    unit = joined_groups(part, rows)
    at, label = _labelled(part, rows)
    if part.targets is not None:
        names = [*names, "any"]
    sizes = np.bincount(label, minlength=len(names))
    (of, label), images = np.unique(np.stack([unit[at], label]), axis=1, return_counts=True)
    num_in = np.bincount(label, minlength=len(names))  # groups that each class has images in
    _check_enough(part, rows, unit, num_in, names, splits)
    starts = np.searchsorted(of, np.arange(int(unit.max()) + 2))
    missing = fraction * sizes  # images of each class that are still to be picked
    num_picked = np.zeros(len(names), dtype=np.int64)  # groups of each class
    picked = np.zeros(len(starts) - 1, dtype=bool)

    def toggle(one: int) -> None:
        here, sign = slice(starts[one], starts[one + 1]), -1 if picked[one] else 1
        missing[label[here]] -= sign * images[here]
        num_picked[label[here]] += sign
        picked[one] = not picked[one]

    def gains(first: int = 0, end: int = len(picked)) -> np.ndarray:
        """Return by how much the squared distance shrinks if a group changes sides; -inf: it must not."""
        pairs = slice(starts[first], starts[end])
        kind, number, is_picked = label[pairs], images[pairs], picked[of[pairs]]
        found = (2 * np.where(is_picked, -1, 1) * missing[kind] - number) * number / sizes[kind] ** 2
        most = num_in[kind] - len(splits) + 1  # groups that may be picked
        found[np.where(is_picked, num_picked[kind] <= 1, num_picked[kind] >= most)] = -np.inf
        return np.add.reduceat(found, starts[first:end] - starts[first])

    order = np.random.default_rng(seed).permutation(len(picked))
    for one in order[: round(fraction * len(order))]:  # some at random, for each seed to give another split
        if gains(one, one + 1)[0] > 0:
            toggle(one)
    for scarce in np.argsort(num_in, kind="stable"):
        if not num_picked[scarce]:
            holders = order[np.isin(order, of[label == scarce])]
            found = gains()[holders]
            if np.isneginf(found).all():
                raise DataError(
                    f"the groups of data.group_by leave class {names[scarce]!r} without {splits[-1]} images: "
                    "each of its groups has the last images of another class; add groups, or use a finer one"
                )
            toggle(holders[found.argmax()])
    most = len(order) if part.targets is None else MOST_AT_ONCE
    while (found := gains()[order]).max() > NEGLIGIBLE:
        for one in order[np.argsort(-found, kind="stable")][
            : min(np.count_nonzero(found > NEGLIGIBLE), most)
        ]:
            if gains(one, one + 1)[0] > NEGLIGIBLE:
                toggle(one)
    return rows[picked[unit]]


def _labelled(part: Part, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of a place among the rows and a class that the image has, int64 (M,) each.

    A multi-label image is in as many pairs as it has labels, and in one of a label that all images have.
    """
    if part.targets is None:
        return np.arange(len(rows)), part.labels[rows]
    targets = part.targets[rows]
    at, label = np.nonzero(np.column_stack([targets, np.ones(len(rows), dtype=targets.dtype)]))
    return at, label


def _check_enough(
    part: Part,
    rows: np.ndarray,
    unit: np.ndarray,
    num_in: np.ndarray,
    names: Sequence[str],
    splits: Sequence[str],
) -> None:
    """Check that every class has a group for each split.

    Raises:
        DataError: one has too few.
    """
    scarce = int(num_in.argmin())
    have = int(num_in[scarce])
    if have >= len(splits):
        return
    at, label = _labelled(part, rows)
    of_class = rows[at[label == scarce]]
    if not part.groups:
        raise DataError(
            f"label {names[scarce]!r} has too few images to be split: {have}, copies counted once, and "
            f"{' and '.join(splits)} need one each; add some, or leave the label out"
        )
    shown = first_few(sorted({part.groups[row] or part.names[row] for row in of_class}), 3)
    joined = ", counting groups that share copies of an image as one" if _are_joined(part, rows, unit) else ""
    raise DataError(
        f"data.group_by leaves class {names[scarce]!r} without {splits[-1]} images: its {len(of_class):,} "
        f"images are in {counted(have, 'group')} ({shown}){joined}, and {' and '.join(splits)} need one "
        "each; add images of others, leave the class out by data.exclude, or group by something finer"
    )


def _are_joined(part: Part, rows: np.ndarray, unit: np.ndarray) -> bool:
    named = [row for row in range(len(rows)) if part.groups[rows[row]]]
    pairs = {(part.groups[rows[row]], int(unit[row])) for row in named}
    return len({of for _, of in pairs}) < len(pairs)


@dataclass(frozen=True)
class GroupSizes:
    """How many groups a data set has, and how large they are."""

    num_groups: int  # images that are in no group count as one each
    num_alone: int  # images that are in no group
    smallest: int  # images in a group
    median: float
    largest: int
    num_joined: int  # groups that share copies of an image with another, and so keep together
    by_split: Mapping[str, int]  # groups with an image in train, val, test

    def __str__(self) -> str:
        where = ", ".join(f"{number:,} {split}" for split, number in self.by_split.items())
        joined = f"; {self.num_joined:,} of them are joined by copies of an image" if self.num_joined else ""
        alone = f", {counted(self.num_alone, 'image')} in none" if self.num_alone else ""
        return (
            f"{counted(self.num_groups, 'group')} ({where}) of {self.smallest:,} to {self.largest:,} images, "
            f"median {self.median:g}{alone}{joined}"
        )


def group_sizes(sides: Mapping[str, Side], parts: Iterable[Part]) -> GroupSizes:
    """Describe the groups of splits.

    Args:
        sides: the part and the rows of "train", "val" and "test".
        parts: of the source, in which copies may join groups.
    """
    named = {
        side: [part.groups[row] or f"\0{part.names[row]}" for row in rows]
        for side, (part, rows) in sides.items()
    }
    every = [name for names in named.values() for name in names]
    _, sizes = np.unique(np.array(every), return_counts=True)
    return GroupSizes(
        num_groups=len(sizes),
        num_alone=sum(name.startswith("\0") for name in every),
        smallest=int(sizes.min()),
        median=float(np.median(sizes)),
        largest=int(sizes.max()),
        num_joined=sum(_num_joined(part) for part in parts),
        by_split={side: len(set(names)) for side, names in named.items()},
    )


def _num_joined(part: Part) -> int:
    rows = np.flatnonzero(part.labels != BROKEN)
    unit = joined_groups(part, rows)
    groups_in: dict[int, set[str]] = {}
    for row, of in zip(rows, unit, strict=True):
        groups_in.setdefault(int(of), set()).add(part.groups[row] or f"\0{row}")
    return sum(len(groups) for groups in groups_in.values() if len(groups) > 1)
