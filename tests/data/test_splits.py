"""Splits: sizes, strata, independence, and the digest that identifies them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedShuffleSplit

from harness.config.schema import DigitsData
from harness.data import ImageSplits, load_splits
from harness.data.decoded_cache import (
    DecodedSet,
    Description,
    Part,
    content_digest,
    hash_images,
    perceptual_hashes,
)
from harness.data.held_out import load_test
from harness.data.splits import build_splits
from harness.data.subsets import allocate, pick_stratified
from harness.errors import ConfigError, DataError


def part_of(labels: np.ndarray, images: np.ndarray) -> Part:
    moments = np.stack([images.sum((1, 2)), (images.astype(np.int64) ** 2).sum((1, 2))], axis=1)
    return Part(images, labels.astype(np.int64), hash_images(images), moments, perceptual_hashes(images))


def decoded_of(sizes: list[int], seed: int = 0) -> DecodedSet:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8)
    names = tuple(f"class {label}" for label in range(len(sizes)))
    return DecodedSet(Description("made up", names, "a test"), {"train": part_of(labels, images)})


def split(decoded: DecodedSet, **fields: object) -> ImageSplits:
    config = DigitsData.model_validate({"batch_size": 1, **fields})
    return build_splits(decoded, config, test_fraction=0.2, is_fallback=False)


# ── sizes and strata ──────────────────────────────────────────────────────────────────────────────


@given(
    st.lists(st.integers(2, 60), min_size=2, max_size=8),
    st.floats(0.01, 0.49),
)
def test_allocation_is_exact_bounded_and_proportional(sizes_list: list[int], fraction: float) -> None:
    sizes = np.array(sizes_list)
    count = int(np.clip(round(fraction * sizes.sum()), len(sizes), sizes.sum() - len(sizes)))
    taken = allocate(sizes, count, sizes - 1)
    assert taken.sum() == count
    assert (taken >= 1).all()
    assert (taken < sizes).all()
    quota = sizes * count / sizes.sum()
    if (quota >= 1).all() and (quota <= sizes - 1).all():
        assert np.abs(taken - quota).max() < 1


def test_allocation_agrees_with_scikit_learn_where_both_can() -> None:
    labels = np.repeat(np.arange(4), [400, 300, 200, 100])
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=130, random_state=0)
    _, theirs = next(splitter.split(labels, labels))
    ours = allocate(np.bincount(labels), 130, np.bincount(labels))
    assert ours.tolist() == np.bincount(labels[theirs]).tolist()


def test_every_image_of_a_class_is_equally_likely() -> None:
    labels = np.repeat([0, 1], [20, 10])
    hits = np.zeros(30)
    for seed in range(2000):
        hits[pick_stratified(labels, np.array([10, 5]), seed)] += 1
    assert np.abs(hits / 2000 - 0.5).max() < 0.06  # five standard deviations


def test_validation_and_training_share_no_image() -> None:
    splits = split(decoded_of([50, 30, 20]), val_fraction=0.2)
    assert set(splits.train.indices).isdisjoint(splits.val.indices)
    assert np.bincount(splits.val.labels).tolist() == [8, 5, 3]


def test_a_tiny_class_still_validates() -> None:
    splits = split(decoded_of([200, 3]), val_fraction=0.05)
    assert np.bincount(splits.val.labels)[1] == 1
    assert np.bincount(splits.train.labels)[1] == 1


# ── max_train_samples ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [3, 17, 71, 72])
def test_a_subset_is_exact_and_leaves_validation_alone(count: int) -> None:
    decoded = decoded_of([50, 30, 20])
    whole, subset = split(decoded), split(decoded, max_train_samples=count)
    assert len(subset.train) == count
    assert set(np.unique(subset.train.labels)) == {0, 1, 2}
    assert set(subset.train.indices) <= set(whole.train.indices)
    np.testing.assert_array_equal(subset.val.indices, whole.val.indices)


def test_max_train_samples_is_a_limit_not_a_demand() -> None:
    decoded = decoded_of([50, 30, 20])
    np.testing.assert_array_equal(
        split(decoded, max_train_samples=73).train.indices, split(decoded).train.indices
    )


def test_max_train_samples_must_cover_the_classes() -> None:
    with pytest.raises(DataError, match="cannot cover 3 classes; raise it"):
        split(decoded_of([50, 30, 20]), max_train_samples=2)


def test_a_batch_may_be_the_whole_split_but_no_more() -> None:
    decoded = decoded_of([50, 30, 20])
    assert len(split(decoded, batch_size=72).train) == 72
    with pytest.raises(
        ConfigError, match=r"data\.batch_size=73 is larger than the training split of 72 images"
    ):
        split(decoded, batch_size=73)


# ── statistics and digest ─────────────────────────────────────────────────────────────────────────


def test_mean_and_deviation_are_of_the_training_split_alone() -> None:
    splits = split(decoded_of([50, 30, 20]), max_train_samples=40)
    pixels = splits.train.gather(slice(None)).reshape(-1, 3) / 255
    np.testing.assert_allclose(splits.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(splits.std, pixels.std(axis=0), rtol=1e-9)


def test_the_digest_changes_with_pixels_labels_and_membership() -> None:
    def altered(images: np.ndarray, labels: np.ndarray) -> DecodedSet:
        return DecodedSet(decoded.about, {"train": part_of(labels, images)})

    decoded = decoded_of([50, 30, 20])
    part = decoded.parts["train"]
    one_pixel = part.images.copy()
    one_pixel[split(decoded).train.indices[0], 0, 0, 0] ^= 1
    swapped = part.labels.copy()
    swapped[[0, 99]] = swapped[[99, 0]]
    digests = [
        split(decoded).digest,
        split(altered(one_pixel, part.labels)).digest,
        split(altered(part.images, swapped)).digest,
        split(decoded, split_seed=1).digest,
        split(decoded, val_fraction=0.2).digest,
        split(decoded, max_train_samples=50).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert split(decoded).digest == digests[0]


def test_the_content_digest_ignores_order_only() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    images[:5] = 0  # duplicates
    labels = np.arange(30) % 4
    hashes, order = hash_images(images), np.random.default_rng(1).permutation(30)
    assert content_digest(hashes[order], labels[order]) == content_digest(hashes, labels)
    assert content_digest(hashes, np.roll(labels, 1)) != content_digest(hashes, labels)
    assert content_digest(hashes[:-1], labels[:-1]) != content_digest(hashes, labels)


# ── digits ────────────────────────────────────────────────────────────────────────────────────────


def test_digits_show_the_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    config = DigitsData(cache_dir=str(tmp_path))
    splits, test = load_splits(config), load_test(config)
    assert len(test) == round(0.2 * 1797)
    rows = np.concatenate([splits.train.indices, splits.val.indices, test.indices])
    assert sorted(rows) == list(range(1797))
    images = splits.train.gather(slice(None))
    assert images.shape[1:] == (32, 32, 3)
    assert (images == images[..., :1]).all()
    original = load_digits()
    np.testing.assert_array_equal(splits.train.labels, original.target[splits.train.indices])
    shrunk = images[..., 0].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)) / 255 * 16
    ink = original.images[splits.train.indices]
    assert np.corrcoef(shrunk.ravel(), ink.ravel())[0, 1] > 0.97


# ── training on the validation images too ─────────────────────────────────────────────────────────


def test_training_on_validation_images_leaves_the_test_images_as_they_are() -> None:
    decoded = decoded_of([40, 30, 20])
    before, after = split(decoded, val_fraction=0.2), split(decoded, val_fraction=0.2, train_on_val=True)
    assert len(after.val) == 0
    both = np.union1d(before.train.indices, before.val.indices)
    np.testing.assert_array_equal(np.sort(after.train.indices), both)
    assert len({before.digest, after.digest, before.val_digest, after.val_digest}) == 4
    assert not np.allclose(before.mean, after.mean)


def test_validation_images_of_a_part_of_their_own_are_joined() -> None:
    train, val = decoded_of([10, 8]), decoded_of([5, 4], seed=1)
    decoded = DecodedSet(train.about, {"train": train.parts["train"], "val": val.parts["train"]})
    joined = split(decoded, train_on_val=True)
    before = split(decoded)
    expected = np.concatenate([before.train.gather(slice(None)), before.val.gather(slice(None))])
    images = joined.train.gather(slice(None))
    order, wanted = (np.lexsort(one.reshape(len(one), -1).T) for one in (images, expected))
    np.testing.assert_array_equal(images[order], expected[wanted])
    labels = np.concatenate([before.train.labels, before.val.labels])
    np.testing.assert_array_equal(joined.train.labels[order], labels[wanted])
