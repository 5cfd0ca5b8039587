"""Folds: a stratified partition that keeps copies and groups together, and what cannot be divided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from harness.config.schema import RunConfig
from harness.config.validation import validate
from harness.data import ImageSplits
from harness.data.decoded_cache import DecodedSet
from harness.errors import ConfigError, DataError
from tests.data.test_splits import decoded_of, part_of, split


def folds_of(decoded: DecodedSet, count: int, **fields: object) -> list[ImageSplits]:
    return [split(decoded, folds=count, fold=fold, **fields) for fold in range(count)]


def test_folds_divide_all_images_but_the_tests_as_scikit_learn_would() -> None:
    decoded = decoded_of([50, 30, 20])
    plain, folds = split(decoded), folds_of(decoded, 4)
    development = np.union1d(plain.train.indices, plain.val.indices)
    held = np.concatenate([one.val.indices for one in folds])
    assert sorted(held) == development.tolist()
    labels = decoded.parts["train"].labels[development]
    theirs = StratifiedKFold(4, shuffle=True, random_state=0).split(development, labels)
    for one, (_, expected) in zip(folds, theirs, strict=True):
        np.testing.assert_array_equal(one.val.indices, development[expected])
        np.testing.assert_array_equal(np.union1d(one.train.indices, one.val.indices), development)
        assert one.whole is not None
        np.testing.assert_array_equal(one.whole.train.indices, development)
    assert len({one.digest for one in folds}) == len({one.val_digest for one in folds}) == 4
    assert len({one.whole.digest for one in folds if one.whole}) == 1  # they share their cached features
    again = folds_of(decoded, 4, split_seed=1)
    assert {one.digest for one in again}.isdisjoint(one.digest for one in folds)


def test_copies_and_groups_stay_in_one_fold() -> None:
    decoded = decoded_of([40, 40])
    part = decoded.parts["train"]
    images = part.images.copy()
    images[[1, 2, 3]] = images[0]
    copied = DecodedSet(decoded.about, {"train": part_of(part.labels, images)})
    for one in folds_of(copied, 4):
        assert np.isin([0, 1, 2, 3], one.val.indices).sum() in (0, 4 - np.isin(range(4), _test(copied)).sum())
    grouped = replace(part, groups=tuple(f"g{row // 4}" for row in range(80)))
    for one in folds_of(DecodedSet(decoded.about, {"train": grouped}), 4):
        assert set(one.val.indices // 4).isdisjoint(one.train.indices // 4)
        assert set(one.val.labels) == {0, 1}


def _test(decoded: DecodedSet) -> np.ndarray:
    plain = split(decoded)
    return np.setdiff1d(np.arange(80), np.union1d(plain.train.indices, plain.val.indices))


def test_subsets_and_wrong_labels_are_of_the_training_folds_alone() -> None:
    for one in folds_of(decoded_of([50, 50]), 5, images_per_class=10, label_noise=0.3):
        assert (len(one.train), len(one.val)) == (20, 16)
        assert len(one.changed_labels()) == 6
        np.testing.assert_array_equal(one.val.labels, one.val.indices // 50)


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.folds=9 needs .* class 'class 1' has 8 .*lower data\.folds"):
        split(decoded_of([50, 10]), folds=9)
    train = decoded_of([20, 20])
    with_val = DecodedSet(train.about, {**train.parts, "val": decoded_of([5, 5], seed=1).parts["train"]})
    with pytest.raises(DataError, match=r"data\.folds=2 divides the training images, and .* of its own"):
        split(with_val, folds=2)
    part = train.parts["train"]
    grouped = replace(part, groups=tuple("a" if row % 20 < 16 else f"g{row}" for row in range(40)))
    with pytest.raises(DataError, match=r"fold . of data\.folds=\d has no image of class|are more than the"):
        split(
            DecodedSet(train.about, {"train": grouped, "test": decoded_of([5, 5], 1).parts["train"]}), folds=9
        )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"folds": 5, "fold": 5}, "fold=5: data.folds=5 counts from 0"),
        ({"fold": 1}, "fold=1: there are no folds"),
        ({"folds": 1}, "greater than or equal to 2"),
    ],
)
def test_a_fold_is_one_of_the_folds(data: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(RunConfig, {"data": {"kind": "digits", **data}})
    assert message in str(refused.value)
