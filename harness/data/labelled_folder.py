"""Loads a folder of labelled images for `harness evaluate --split FOLDER`: classes as a run knows them.

The folder is read and decoded as `data=folder` reads and decodes one, for a multi-label run as
`data=multilabel` does, by a CSV file of its own. `held_out.py` tells how many of its
images the run knows already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.config.schema import DataConfig, FolderData
from harness.data.load import load_decoded, resolve_auto
from harness.data.messages import printable
from harness.data.sources.layout import LONG_NAMES
from harness.data.splits import ImageArrays, arrays_of, readable_rows
from harness.errors import DataError, first_few
from harness.files import slug

SMALL_IMAGE = 32  # pixels: the side of the images of CIFAR-10 and of the digits


@dataclass(frozen=True)
class LabelledFolder:
    """A folder's images.

    Args:
        name: "folder/NAME-DIGEST", by which its results are recorded: another content is another name.
        images: their labels are numbers of the run's classes; multi-label, in the order of the run's labels.
        hashes: uint8 (N, 32), the sha256 of each image's pixels.
    """

    name: str
    images: ImageArrays
    hashes: np.ndarray


def load_labelled_folder(path: Path, config: DataConfig, class_names: Sequence[str]) -> LabelledFolder:
    """Load a tree of class folders.

    Args:
        config: the run's section `data`: images get the size and the range of pixels of its own.
        class_names: the run's.

    Raises:
        DataError: there is no such folder, its classes are not the run's, it holds folders of splits, or
            none of its images can be read.
    """
    root = path.expanduser()
    shown = printable(str(path))
    if not root.is_dir():
        raise DataError(f"there is no folder {shown}: --split takes val, test, or a folder of class folders")
    decoded = load_decoded(_as_folder(root, resolve_auto(config)))
    is_multilabel = decoded.parts["train"].targets is not None
    if is_multilabel and len(decoded.parts) > 1:
        raise DataError(f"the CSV file of {shown} divides its images into splits: remove the column `split`")
    if splits := [LONG_NAMES[part] for part in decoded.parts if part != "train" or len(decoded.parts) > 1]:
        raise DataError(f"{shown} has folders of splits ({', '.join(splits)}): name one of these folders")
    found = decoded.about.class_names
    _check_classes(shown, found, class_names, "labels" if is_multilabel else "class folders")
    part = decoded.parts["train"]
    rows = readable_rows(part, found, "test")
    labels = part.labels_at(rows)
    if is_multilabel:
        labels = labels[:, [found.index(name) for name in class_names]]
    else:
        labels = np.array([class_names.index(name) for name in found], dtype=np.int64)[labels]
    images = arrays_of(part, rows, labels)
    name = slug(root.resolve().name) or "images"
    return LabelledFolder(f"folder/{name}-{images.digest[:8]}", images, part.hashes[rows])


def _as_folder(root: Path, of_run: DataConfig) -> FolderData:
    """Return the section `data` for the folder, which decodes images as the run's own were decoded."""
    if isinstance(of_run, FolderData):
        return of_run.model_copy(update={"dir": str(root)})
    return FolderData(
        dir=str(root), cache_dir=of_run.cache_dir, batch_size=of_run.batch_size, decode_size=SMALL_IMAGE
    )


def _check_classes(shown: str, found: Sequence[str], wanted: Sequence[str], what: str) -> None:
    missing = [name for name in wanted if name not in set(found)]
    extra = [name for name in found if name not in set(wanted)]
    faults = [f"lacks {first_few(missing)}"] if missing else []
    faults += [f"has {first_few(extra)}, which the run does not know"] if extra else []
    if faults:
        kind = "classes" if what == "class folders" else "labels"
        raise DataError(
            f"the {what} of {shown} are not the run's {len(wanted)} {kind}: it {' and '.join(faults)}"
        )
