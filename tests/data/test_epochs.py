"""The images of each epoch: fresh ones until all have come, in an order that a resumed run repeats."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from harness.config.schema import AugmentConfig, DigitsData
from harness.data.datamodule import ImageDataModule
from harness.data.epochs import FLIP_STREAM, ORDER_STREAM, EpochOrder
from harness.data.features.datamodule import FeatureArrays, FeatureDataModule
from harness.data.splits import ImageSplits

ALTERNATING = AugmentConfig(flip="alternating")


def test_an_epoch_is_one_pass_in_the_order_of_earlier_versions() -> None:
    whole, same = EpochOrder(41, 7), EpochOrder(41, 7, 41)
    for epoch in range(3):
        expected = np.random.default_rng([7, ORDER_STREAM, epoch]).permutation(41)
        np.testing.assert_array_equal(whole.images(epoch), expected)
        np.testing.assert_array_equal(same.images(epoch), expected)
        assert whole.passes(epoch).tolist() == [epoch] * 41


@pytest.mark.parametrize("samples", [1, 7, 40, 41, 42, 100])
def test_epochs_of_any_length_draw_on_through_whole_permutations(samples: int) -> None:
    order = EpochOrder(41, 3, samples)
    num_epochs = -(-3 * 41 // samples)
    drawn = np.concatenate([order.images(epoch) for epoch in range(num_epochs)])
    passes = np.concatenate([order.passes(epoch) for epoch in range(num_epochs)])
    assert (
        [len(order.images(epoch)) for epoch in range(num_epochs)]
        == [samples] * num_epochs
        == [len(order)] * (num_epochs)
    )
    for number in range(3):  # three passes, cut into epochs: each is all images once
        assert sorted(drawn[passes == number][:41]) == list(range(41))
    assert not np.array_equal(drawn[:41], drawn[41:82])  # by a new permutation each time
    np.testing.assert_array_equal(
        drawn[: 3 * 41], np.concatenate([EpochOrder(41, 3).images(e) for e in range(3)])
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
    data = FeatureDataModule(arrays, arrays, 4, seed=1, samples_per_epoch=4)
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
