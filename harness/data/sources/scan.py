"""Lists the files below a folder: the images, and what is not used, with the reason.

`layout.py` calls `scan` and finds the classes and splits in the tree of folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from harness.data.decoding.decode import is_image
from harness.data.messages import printable
from harness.errors import DataError

SYSTEM_NAMES = frozenset({"__MACOSX", "__pycache__", "lost+found", "Thumbs.db", "desktop.ini"})
HIDDEN = "hidden, or the system's"
NO_IMAGE = "no image"
EXCLUDED = "left out by data.exclude"
NO_CLASS = "in no class folder"

Place = tuple[int, int]  # of a folder: device and inode


@dataclass(frozen=True)
class PassedOver:
    """A file or a whole folder that is not used."""

    path: str  # relative to the data folder
    why: str


@dataclass
class Folder:
    """A folder, with the images directly in it and its subfolders; both in the order of their names."""

    name: str
    path: str  # relative to the data folder; empty for the data folder itself
    images: list[str] = field(default_factory=list)  # paths, relative to the data folder
    folders: list[Folder] = field(default_factory=list)

    def all_images(self) -> Iterator[str]:
        """Yield the images in this folder and in all folders below it."""
        yield from self.images
        for folder in self.folders:
            yield from folder.all_images()

    @property
    def filled(self) -> list[Folder]:
        """The subfolders that hold images, at any depth."""
        return [folder for folder in self.folders if next(folder.all_images(), None) is not None]


def scan(
    root: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[Folder, list[PassedOver]]:
    """Return the tree below a folder, and what is passed over in it.

    Symbolic links to folders are followed, except where this might never end. So these are not followed: a
    link to a folder that contains the link; and, below a link that was followed, a link into the tree of
    `root` or to a folder that was already entered through the first link.

    Raises:
        DataError: If a folder cannot be read.
    """
    scanner = _Scanner(root, tuple(include), tuple(exclude))
    try:
        top = scanner.folder(
            root.name, "", tuple(map(_place, (scanner.inside, *scanner.inside.parents))), None
        )
    except OSError as error:
        where = printable(str(error.filename or root))
        raise DataError(
            f"cannot read the folder {where}: {error.strerror}; check its permissions, or leave it out by "
            "data.exclude"
        ) from error
    return top, scanner.passed_over


def _place(path: Path) -> Place:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


class _Scanner:
    def __init__(self, root: Path, include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
        self.root = root
        self.inside = root.resolve()
        self.include = include
        self.exclude = exclude
        self.passed_over: list[PassedOver] = []

    def folder(self, name: str, path: str, above: tuple[Place, ...], linked: set[Place] | None) -> Folder:
        """Read a folder.

        Args:
            above: the folders on the way here, and this one.
            linked: the folders that were entered through the link that led here; None: no link did.
        """
        found = Folder(name, path)
        with os.scandir(self.root / path) as entries:
            in_order = sorted(entries, key=lambda entry: entry.name)
        for entry in in_order:
            below = f"{path}/{entry.name}" if path else entry.name
            if (why := self._unwanted(entry, below)) is not None:
                self.passed_over.append(PassedOver(below, why))
            elif not Path(entry).is_dir():
                found.images.append(below)
            elif (reason := self._leads_back(entry, above, linked)) is not None:
                self.passed_over.append(PassedOver(below, reason))
            else:
                place = _place(Path(entry))
                through = linked
                if entry.is_symlink() and linked is None:
                    through = set()
                if through is not None:
                    through.add(place)
                found.folders.append(self.folder(entry.name, below, (*above, place), through))
        return found

    def _unwanted(self, entry: os.DirEntry[str], path: str) -> str | None:
        """Return why an entry is not used, or None. `_leads_back` checks links that lead back."""
        here = Path(entry)
        why = None
        if entry.name.startswith(".") or entry.name in SYSTEM_NAMES:
            why = HIDDEN
        elif any(_matches(path, pattern, only_last=True) for pattern in self.exclude):
            why = EXCLUDED
        elif here.is_dir():
            why = None
        elif here.exists() and not here.is_file():
            why = "no regular file"  # opening a pipe would block
        elif not is_image(here):
            why = NO_IMAGE
        elif self.include and not any(_matches(path, pattern) for pattern in self.include):
            why = "not among data.include"
        return why

    def _leads_back(
        self, entry: os.DirEntry[str], above: tuple[Place, ...], linked: set[Place] | None
    ) -> str | None:
        place = _place(Path(entry))
        if place in above:
            return "a link that leads back"
        if entry.is_symlink() and linked is not None:
            target = Path(entry).resolve()
            if place in linked or target.is_relative_to(self.inside):
                return "a link, below another one, to what is reached without it"
        return None


def _matches(path: str, pattern: str, *, only_last: bool = False) -> bool:
    """Tell whether a pattern matches a path, or one of the folders that the path leads through.

    A pattern that contains a slash is compared with their paths, any other pattern with their names.

    Args:
        only_last: compare the path itself alone, because its folders were checked before they were entered.
    """
    parts = path.split("/")
    ends = [len(parts)] if only_last else range(1, len(parts) + 1)
    if "/" in pattern.strip("/"):
        return any(fnmatchcase("/".join(parts[:end]), pattern.strip("/")) for end in ends)
    return any(fnmatchcase(parts[end - 1], pattern.strip("/")) for end in ends)
