"""Reads a folder's layout: the class of each image, and its split if the tree gives one.

    CLASS/…                     the harness makes the splits
    SPLIT/CLASS/…               the tree gives the splits; `SPELLINGS` lists the names of split folders
    WRAPPER/…                   a single folder around either, as in many zip files, is skipped

Below a class folder, images may lie at any depth. A tree that can be read in two ways is refused with a
message that says what was found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.data.decoded_cache import PartName
from harness.data.messages import counted, printable
from harness.data.sources.scan import EXCLUDED, NO_CLASS, Folder, PassedOver, scan
from harness.errors import DataError, did_you_mean, first_few

# In upper or lower case; "set", "data", "images" or "split" may follow: Training, test_set, "Val images".
SPELLINGS: dict[PartName, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
SPLIT_NAME = {
    part: re.compile(rf"({'|'.join(words)})([-_ .]?(set|data|images?|imgs?|split))?")
    for part, words in SPELLINGS.items()
}
LONG_NAMES: dict[PartName, str] = {"train": "training", "val": "validation", "test": "test"}
MASK = re.compile(
    r"(.+?)[-_ .](masks?|segmentations?|seg|gt|ground_?truth|annotations?|labels?)", re.IGNORECASE
)


@dataclass(frozen=True)
class ImageFile:
    """One image file, and what its place in the tree says about it."""

    path: str  # relative to the data folder
    part: PartName
    class_name: str  # printable
    class_folder: str  # relative to the data folder


@dataclass(frozen=True)
class Layout:
    """The images of a folder, with their classes and splits.

    Args:
        files: in a fixed order.
        passed_over: all other files and folders.
        layout: the layout as it was understood, in a few words.
        notices: messages to the user about the folder, one line each.
        labels_of: by path, the labels of a multi-label image: uint8 (K,) of 0 and 1. None where each image
            is of one class, its folder's.
    """

    root: Path
    files: tuple[ImageFile, ...]
    class_names: tuple[str, ...]
    passed_over: tuple[PassedOver, ...]
    layout: str
    notices: tuple[str, ...]
    labels_of: Mapping[str, np.ndarray] | None = None


def read_layout(root: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Layout:
    """Return a folder's layout. Files with an image's suffix are not opened.

    Raises:
        DataError: If there is no folder, no image, one class only, or more than one way to understand it.
    """
    if not root.is_dir():
        raise DataError(
            f"there is no folder {printable(str(root))}; set data.dir (DATA_DIR) to a tree of class folders"
        )
    top, passed_over = scan(root, include, exclude)
    reader = _Reader(root, top, passed_over)
    files = reader.read()
    taken = {file.path for file in files}
    loose = [PassedOver(path, NO_CLASS) for path in top.all_images() if path not in taken]
    notices = [*reader.notices, *unused_patterns(exclude, passed_over), *_masks(files)]
    return Layout(
        root,
        tuple(files),
        _class_names(root, files),
        (*passed_over, *loose),
        reader.described,
        tuple(notices),
    )


def describe_passed_over(passed_over: Sequence[PassedOver]) -> str:
    """Return how many files and folders are not used, why, and the first of each kind, on one line."""
    kinds: dict[str, list[str]] = {}
    for one in passed_over:
        kinds.setdefault(one.why, []).append(printable(one.path))
    return "; ".join(f"{len(paths):,} {why} ({first_few(paths, 3)})" for why, paths in sorted(kinds.items()))


def part_named(name: str) -> PartName | None:
    """Return the split that a folder's name stands for."""
    word = printable(name).casefold().strip()
    return next((part for part, spelling in SPLIT_NAME.items() if spelling.fullmatch(word)), None)


class _Reader:
    """Reads one tree. `described` then holds its layout in words, `notices` messages to the user."""

    def __init__(self, root: Path, top: Folder, passed_over: list[PassedOver]) -> None:
        self.root = root
        self.top = top
        self.passed_over = passed_over
        self.described = ""
        self.notices: list[str] = []

    def read(self) -> list[ImageFile]:
        wrapped = _unwrap(self.top)
        parts = self._parts(wrapped)
        through = "" if wrapped is self.top else f"below {_shown(wrapped)}: "
        if parts is None:
            self._refuse_splits_inside(wrapped)
            self.described = f"{through}class folders, split by the harness"
            return self._files(wrapped, "train")
        train = _unwrap(parts["train"])
        steps = Path(train.path).relative_to(parts["train"].path).parts
        given = {part: _descend(folder, steps) for part, folder in parts.items()}
        missing = [LONG_NAMES[part] for part in SPELLINGS if part not in given]
        aside = f"; {' and '.join(missing)} images are set aside from training" if missing else ""
        named = ", ".join(f"{_shown(folder)} ({LONG_NAMES[part]})" for part, folder in given.items())
        self.described = f"{through}class folders in {named}{aside}"
        return [file for part, folder in given.items() for file in self._files(folder, part)]

    def _parts(self, folder: Folder) -> dict[PartName, Folder] | None:
        """Return the folders of the splits; None where the folder holds classes."""
        filled = folder.filled
        if not filled:
            raise DataError(
                f"there are no images in the class folders of {self._here(folder)}; expected e.g. "
                f"{printable(self.root.name)}/cat/1.png or {printable(self.root.name)}/train/cat/1.png"
                f"{self._seen(folder)}"
            )
        splits = [(part, one) for one in filled if (part := part_named(one.name)) is not None]
        others = [one for one in filled if part_named(one.name) is None]
        with_classes = [(part, one) for part, one in splits if one.filled]
        named = _names(one for _, one in splits)
        if not splits:
            return None
        if others and with_classes:
            raise DataError(
                f"{self._here(folder)} has {named}, which are named as splits and have class folders, beside "
                f"{_names(others)}, which hold images too: this can be meant in two ways; "
                "move some of them, or leave folders out by data.exclude=[NAME,…]"
            )
        if others and len(splits) > 1:
            raise DataError(
                f"{self._here(folder)} has {named}, which are named as splits but have no class folders, "
                f"beside {_names(others)}: this can be meant in two ways; "
                "expected train/cat/1.png, or leave folders out by data.exclude=[NAME,…]"
            )
        if others:
            self.notices.append(
                f"{named} beside {_names(others)} is taken for a class, since it holds images itself; "
                f"if it is none, leave it out by data.exclude=[{printable(splits[0][1].name)}]"
            )
            return None
        return self._given_parts(folder, splits, with_classes)

    def _given_parts(
        self,
        folder: Folder,
        splits: list[tuple[PartName, Folder]],
        with_classes: list[tuple[PartName, Folder]],
    ) -> dict[PartName, Folder]:
        found: dict[PartName, Folder] = {}
        for part, one in splits:
            if part in found:
                raise DataError(
                    f"{self._here(folder)} has {_shown(found[part])} and {_shown(one)}, which both mean the "
                    f"{LONG_NAMES[part]} split; put them together, or leave one out by data.exclude"
                )
            found[part] = one
        if "train" not in found:
            raise DataError(
                f"{self._here(folder)} has {_names(found.values())} but no train/; add it or remove them"
            )
        if not found["train"].filled:
            raise DataError(
                f"{self._here(found['train'])} holds {counted(len(found['train'].images), 'image')} but no "
                "class folders; expected train/cat/1.png"
            )
        for part, one in splits:
            if (part, one) not in with_classes:
                self.notices.append(
                    f"{_shown(one)} holds {counted(len(one.images), 'image')} in no class folder: they have "
                    f"no label and are passed over; {LONG_NAMES[part]} images are set aside from training"
                )
        for one in folder.folders:
            if (empty := part_named(one.name)) is not None and empty not in found:
                self.notices.append(
                    f"{_shown(one)} holds no images: {LONG_NAMES[empty]} images are set aside from training"
                )
        return {part: found[part] for part in SPELLINGS if (part, found.get(part)) in with_classes}

    def _refuse_splits_inside(self, folder: Folder) -> None:
        """Refuse cat/train beside cat/test: as subfolders of a class, the splits would be mixed."""
        inside = [{part_named(one.name) for one in kind.filled} - {None} for kind in folder.filled]
        if any(len(parts) > 1 for parts in inside) or (len(inside) > 1 and all(inside)):
            example = next(
                one for kind in folder.filled for one in kind.filled if part_named(one.name) is not None
            )
            raise DataError(
                f"{self._here(folder)} has split folders inside of class folders ({_shown(example)}); "
                "put the splits on top (train/cat/1.png), or leave folders out by data.exclude"
            )

    def _files(self, folder: Folder, part: PartName) -> list[ImageFile]:
        spelled: dict[str, list[str]] = {}
        files = []
        for kind in folder.filled:
            name = printable(kind.name)
            spelled.setdefault(name, []).append(ascii(kind.name))
            files += [ImageFile(path, part, name, kind.path) for path in kind.all_images()]
        for name, spellings in spelled.items():
            if len(spellings) > 1:
                self.notices.append(
                    f"{counted(len(spellings), 'folder')} of {self._here(folder)} are one class, {name!r}, "
                    f"spelled in different Unicode forms ({', '.join(spellings)})"
                )
        return files

    def _here(self, folder: Folder) -> str:
        return printable(str(self.root / folder.path))

    def _seen(self, folder: Folder) -> str:
        if folder.images:
            return f"; seen: {counted(len(folder.images), 'image')} in no class folder"
        return f"; seen: {told}" if (told := describe_passed_over(self.passed_over)) else ""


def _unwrap(folder: Folder) -> Folder:
    """Return the folder inside all wrappers: a wrapper holds one folder only, and that one only folders."""
    filled = folder.filled
    while (
        len(filled) == 1 and part_named(filled[0].name) is None and filled[0].filled and not filled[0].images
    ):
        folder, filled = filled[0], filled[0].filled
    return folder


def _descend(folder: Folder, steps: Sequence[str]) -> Folder:
    for step in steps:
        folder = next((one for one in folder.folders if one.name == step), folder)
    return folder


def _shown(folder: Folder) -> str:
    return f"{printable(folder.path)}/"


def _names(folders: Iterable[Folder]) -> str:
    return first_few([f"{printable(folder.name)}/" for folder in folders])


def _class_names(root: Path, files: list[ImageFile]) -> tuple[str, ...]:
    known = {file.class_name for file in files if file.part == "train"}
    for file in files:
        if file.class_name not in known:
            raise DataError(
                f"class {file.class_name!r} of {printable(str(root / file.path))} does not exist among the "
                f"training classes{did_you_mean(file.class_name, known)}; "
                "add it to train/ or leave it out by data.exclude"
            )
    if len(known) < 2:
        raise DataError(
            f"{printable(str(root))} has images of one class only ({min(known)!r}); "
            "two class folders are the least"
        )
    return tuple(sorted(known))


def unused_patterns(exclude: Sequence[str], passed_over: list[PassedOver]) -> list[str]:
    """Return a message to the user if `data.exclude` leaves nothing out."""
    if exclude and not any(one.why == EXCLUDED for one in passed_over):
        return [f"data.exclude={list(exclude)} leaves nothing out"]
    return []


def _masks(files: list[ImageFile]) -> list[str]:
    """Look for images that are named after another one beside them, as masks are: cat/1_mask.png."""
    stems = {str(Path(file.path).with_suffix("")) for file in files}
    named = [stem for stem in sorted(stems) if (match := MASK.fullmatch(stem)) and match[1] in stems]
    if not named:
        return []
    ending = named[0][len(MASK.fullmatch(named[0])[1]) :]  # type: ignore[index]  # it matches
    return [
        f"{counted(len(named), 'image')} look like masks of others "
        f"({first_few(list(map(printable, named)), 2)}) and count as images; "
        f"leave them out by data.exclude='*{ending}*'"
    ]
