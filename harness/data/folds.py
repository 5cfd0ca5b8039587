"""Folds for cross-validation: `data.fold` of `data.folds` validates a run, the other folds train it.

`splits.py` calls `rows_of_fold`. The division depends on `data.split_seed` and the images alone. Copies of an
image, and groups of `data.group_by`, stay in one fold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.config.schema import BaseData
from harness.data.decoded_cache import Part
from harness.data.duplicates import first_of_duplicates
from harness.data.groups import joined_groups
from harness.errors import DataError


def rows_of_fold(part: Part, rows: np.ndarray, config: BaseData, names: Sequence[str]) -> np.ndarray:
    """Return the rows of the fold that validates, sorted.

    Args:
        rows: of all images that are not for the test.
        names: of the classes.

    Raises:
        DataError: a class has fewer images than there are folds, or a fold would be without one of a class.

    Source: scikit-learn's `StratifiedKFold`; with groups, `StratifiedGroupKFold`.
    """
    assert config.folds is not None
    fold_of = _grouped(part, rows, config) if part.groups else _stratified(part, rows, config, names)
    counts = np.zeros((len(names), config.folds), dtype=np.int64)
    np.add.at(counts, (part.labels[rows], fold_of), 1)
    lacking = np.argwhere(counts == 0)
    if len(lacking):
        label, fold = lacking[0]
        raise DataError(
            f"fold {fold} of data.folds={config.folds} has no image of class {names[label]!r}, whose "
            f"{counts[label].sum():,} images lie in too few groups, or in groups that are too large: lower "
            "data.folds, or try another data.split_seed"
        )
    return rows[fold_of == config.fold]


def _stratified(part: Part, rows: np.ndarray, config: BaseData, names: Sequence[str]) -> np.ndarray:
    from sklearn.model_selection import StratifiedKFold  # imported only here: it takes a second

    assert config.folds is not None
    different, first = first_of_duplicates(part, rows)
    sizes = np.bincount(part.labels[different], minlength=len(names))
    if sizes.min() < config.folds:
        scarce = int(sizes.argmin())
        raise DataError(
            f"data.folds={config.folds} needs an image of each class in every fold, and class "
            f"{names[scarce]!r} has {sizes[scarce]:,} (copies count once): lower data.folds, or add images"
        )
    splitter = StratifiedKFold(config.folds, shuffle=True, random_state=config.split_seed % 2**32)
    fold_of = np.empty(len(different), dtype=np.int64)
    for number, (_, held) in enumerate(splitter.split(different, part.labels[different])):
        fold_of[held] = number
    return fold_of[np.searchsorted(different, first)]


def _grouped(part: Part, rows: np.ndarray, config: BaseData) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold

    assert config.folds is not None
    unit = joined_groups(part, rows)
    if (count := int(unit.max()) + 1) < config.folds:
        raise DataError(
            f"data.folds={config.folds} are more than the {count} groups of data.group_by: lower it"
        )
    splitter = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.split_seed % 2**32)
    fold_of = np.empty(len(rows), dtype=np.int64)
    for number, (_, held) in enumerate(splitter.split(rows, part.labels[rows], unit)):
        fold_of[held] = number
    return fold_of
