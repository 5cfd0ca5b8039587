"""The images of each epoch: fresh ones until all have come, in an order that a resumed run repeats."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.config.schema import AugmentConfig, DigitsData
from harness.config.selection import Sampling
from harness.data.datamodule import ImageDataModule
from harness.data.epochs import FLIP_STREAM, ORDER_STREAM, EpochOrder
from harness.data.features.datamodule import FeatureArrays, FeatureDataModule
from harness.data.splits import ImageSplits

ALTERNATING = AugmentConfig(flip="alternating")


def order_of(count: int, seed: int, samples_per_epoch: int | None = None) -> EpochOrder:
    return EpochOrder(np.arange(count) % 3, seed, samples_per_epoch)


def test_an_epoch_is_one_pass_in_the_order_of_earlier_versions() -> None:
    whole, same = order_of(41, 7), order_of(41, 7, 41)
    for epoch in range(3):
        expected = np.random.default_rng([7, ORDER_STREAM, epoch]).permutation(41)
        np.testing.assert_array_equal(whole.images(epoch), expected)
        np.testing.assert_array_equal(same.images(epoch), expected)
        assert whole.visits(epoch)[1].tolist() == [epoch] * 41


@pytest.mark.parametrize("samples", [1, 7, 40, 41, 42, 100])
def test_epochs_of_any_length_draw_on_through_whole_permutations(samples: int) -> None:
    order = order_of(41, 3, samples)
    num_epochs = -(-3 * 41 // samples)
    drawn = np.concatenate([order.images(epoch) for epoch in range(num_epochs)])
    passes = np.concatenate([order.visits(epoch)[1] for epoch in range(num_epochs)])
    assert (
        [len(order.images(epoch)) for epoch in range(num_epochs)]
        == [samples] * num_epochs
        == [len(order)] * (num_epochs)
    )
    for number in range(3):  # three passes, cut into epochs: each is all images once
        assert sorted(drawn[passes == number][:41]) == list(range(41))
    assert not np.array_equal(drawn[:41], drawn[41:82])  # by a new permutation each time
    np.testing.assert_array_equal(
        drawn[: 3 * 41], np.concatenate([order_of(41, 3).images(e) for e in range(3)])
    )


def test_a_bounded_epoch_trains_on_so_many_images_with_their_own_labels(splits: ImageSplits) -> None:
    module = ImageDataModule(splits, DigitsData(batch_size=8, samples_per_epoch=20), AugmentConfig(), seed=0)
    seen: list[int] = []
    for epoch in range(2):
        loader = module.train_batches(lambda epoch=epoch: epoch)
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [8, 8, 4]
        assert len(loader) == 3
        for images, labels in batches:
            rows = images[:, 0, 0, 0].tolist()
            seen += rows
            places = [int(np.flatnonzero(splits.train.indices == row)[0]) for row in rows]
            assert labels.tolist() == splits.train.labels[places].tolist()
    assert len(set(seen)) == 40  # of 41: no image twice


def test_alternating_flips_change_with_the_pass_not_with_the_epoch(splits: ImageSplits) -> None:
    count = len(splits.train)
    first = np.random.default_rng([0, FLIP_STREAM]).random(count) < 0.5
    whole = ImageDataModule(splits, DigitsData(batch_size=8), ALTERNATING, seed=0)
    for epoch in range(2):
        np.testing.assert_array_equal(
            whole.alternating_flips(epoch), first[whole.order(epoch)] ^ bool(epoch % 2)
        )
    bounded = ImageDataModule(splits, DigitsData(batch_size=8, samples_per_epoch=10), ALTERNATING, seed=0)
    flips: dict[int, list[bool]] = {}
    for epoch in range(9):  # 90 of 82 visits
        for image, flip in zip(bounded.order(epoch), bounded.alternating_flips(epoch), strict=True):
            flips.setdefault(int(image), []).append(bool(flip))
    assert sorted(flips) == list(range(count))
    assert all(one != other for one, other, *_ in flips.values())
    images, _ = next(iter(bounded.train_batches(lambda: 4)))
    shown = bounded.augment(images, 4, 0)
    changed = (shown != images).flatten(1).any(1).numpy()
    np.testing.assert_array_equal(changed, bounded.alternating_flips(4)[:8])


def test_cached_views_come_in_turn_pass_after_pass() -> None:
    arrays = FeatureArrays(np.zeros((30, 2), dtype=np.float16), np.arange(10), num_views=3)
    data = FeatureDataModule(arrays, arrays, 4, EpochOrder(np.arange(10), 1, 4))
    rows = list(itertools.chain.from_iterable(data.order(epoch) for epoch in range(9)))[:30]
    assert sorted(rows) == list(range(30))  # three passes of 10: each image in each view once
    assert len(data.train_dataloader()) == 1


@pytest.mark.parametrize("flip", [True, "alternating"])
def test_flips_for_cached_views_are_those_of_the_images(splits: ImageSplits, flip: bool | str) -> None:
    module = ImageDataModule(
        splits,
        DigitsData(batch_size=8, samples_per_epoch=50),
        AugmentConfig(flip=flip),  # type: ignore[arg-type]
        seed=0,
    )
    for epoch in (0, 3):
        shown: list[bool] = []
        for index, (images, _) in enumerate(module.train_batches(lambda epoch=epoch: epoch)):
            shown += (module.augment(images, epoch, index) != images).flatten(1).any(1).tolist()
        assert shown == module.flips(epoch, torch.device("cpu")).tolist()
        assert len(shown) == 50


# ── over- and under-sampling ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("sampling", "each"), [("over", 24), ("under", 5)])
@pytest.mark.parametrize("samples", [None, 7])
def test_a_balanced_pass_has_equally_many_of_each_class_and_goes_through_all(
    sampling: Sampling, each: int, samples: int | None
) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [24, 12, 5]))
    order = EpochOrder(labels, 3, samples, sampling)
    assert (order.pass_length, len(order)) == (3 * each, samples or 3 * each)
    num_epochs = -(-5 * 3 * each // len(order))
    visits = [order.visits(epoch) for epoch in range(num_epochs)]
    images, before = map(np.concatenate, zip(*visits, strict=True))
    for number in range(5):
        one = images[number * 3 * each : (number + 1) * 3 * each]
        assert np.bincount(labels[one]).tolist() == [each] * 3
    for label in range(3):  # no image of a class comes twice as long as another has not come
        of_class = labels[images[: 15 * each]] == label
        come = np.bincount(images[: 15 * each][of_class], minlength=len(labels))[labels == label]
        assert come.max() - come.min() <= 1
    for image in range(len(labels)):  # `before` counts each image's own visits
        own = before[: 15 * each][images[: 15 * each] == image]
        assert sorted(own) == list(range(len(own)))
    first, second = images[: 3 * each], images[3 * each : 6 * each]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(images[: len(order)], EpochOrder(labels, 3, samples, sampling).images(0))


def test_balanced_batches_are_the_same_of_images_and_of_cached_features(splits: ImageSplits) -> None:
    """With alternating flips: an image is mirrored in every second of its own visits."""
    labels = np.where(np.arange(len(splits.train)) < 5, 0, 1)
    rare = replace(splits, train=replace(splits.train, labels=labels))
    module = ImageDataModule(rare, DigitsData(batch_size=8, sampling="over"), ALTERNATING, seed=0)
    features = FeatureArrays(np.zeros((2 * len(labels), 1)), labels, num_views=2)
    cached = FeatureDataModule(
        features, features, 8, module.epochs, views=lambda e: module.alternating_flips(e).astype(int)
    )
    assert len(module.train_dataloader()) == len(cached.train_dataloader()) == 9  # 2 × 36 images
    for epoch in (0, 1):
        np.testing.assert_array_equal(cached.order(epoch) % len(labels), module.order(epoch))
    shown = np.concatenate([module.order(epoch) for epoch in (0, 1)])
    flips = np.concatenate([module.alternating_flips(epoch) for epoch in (0, 1)])
    for image in range(len(labels)):
        own = flips[shown == image]
        assert abs(2 * own.sum() - len(own)) <= 1
