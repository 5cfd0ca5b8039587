"""Shards of a batch: together they are the batch, drawn and weighted as one process would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from harness.config.schema import AugmentConfig, DigitsData
from harness.data.datamodule import BatchLoader, ImageDataModule
from harness.data.epochs import EpochOrder
from harness.data.features.datamodule import FeatureArrays, FeatureDataModule
from harness.data.sharding import RankInfo, Shard
from harness.data.splits import ImageSplits

AUGMENTATIONS = [
    AugmentConfig(flip=True, crop_padding=2),
    AugmentConfig(flip="alternating"),
    AugmentConfig(policy="trivial", erasing_probability=0.7),
    AugmentConfig(policy="rand", brightness=0.3, hue=0.2, cutout_size=3, erasing_probability=0.7),
    AugmentConfig(policy="augmix", rotation=20, scale=0.2, blur_sigma=1.5, noise_std=0.2),
]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [1, 3, 7, 10, 64])
def test_shards_cover_a_batch_once_and_differ_by_one_image_at_most(world: int, total: int) -> None:
    shards = [RankInfo(rank, world).shard(total) for rank in range(world)]
    counting = [np.arange(total)[shard.rows] for shard in shards if shard.counts]
    assert np.concatenate(counting).tolist() == list(range(total))
    sizes = [shard.stop - shard.start for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, total), "batch norm needs two images"


@pytest.mark.parametrize("total", [2, 3, 7, 8])
@pytest.mark.parametrize("world", [2, 3])
def test_weighted_shards_average_to_the_gradient_of_the_whole_batch(total: int, world: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(total, 4, generator=generator), torch.arange(total) % 3
    weight = torch.randn(3, 4, generator=generator, requires_grad=True)
    (whole,) = torch.autograd.grad(F.cross_entropy(images @ weight.T, labels), weight)
    average = torch.zeros_like(weight)
    for rank in range(world):
        shard = RankInfo(rank, world).shard(total)
        loss = F.cross_entropy(images[shard.rows] @ weight.T, labels[shard.rows]) * shard.weight
        average += torch.autograd.grad(loss, weight)[0] / world  # as DDP averages
    assert torch.allclose(average, whole, atol=1e-6)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("world", [2, 3])
def test_shards_of_an_augmented_batch_are_the_batchs_own_bits(
    splits: ImageSplits, augment: AugmentConfig, world: int
) -> None:
    module = ImageDataModule(splits, DigitsData(batch_size=11), augment, seed=0)
    for index, (images, _) in enumerate(module.train_batches(lambda: 3)):
        whole = module.augment(images, 3, index)
        shards = [RankInfo(rank, world).shard(len(images)) for rank in range(world)]
        parts = [module.augment(images[shard.rows], 3, index, shard) for shard in shards]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("samples", [None, 30, 47])  # in an epoch; the split has 41
def test_every_process_loads_its_shard_of_each_batch(
    splits: ImageSplits, world: int, mixed: bool, samples: int | None
) -> None:
    augment = AugmentConfig(mixup_alpha=1.0) if mixed else AugmentConfig()
    data = DigitsData(batch_size=9, samples_per_epoch=samples)
    alone = list(ImageDataModule(splits, data, augment, 0).train_batches(lambda: 2))
    loaders = [
        ImageDataModule(splits, data, augment, 0, rank_info=RankInfo(rank, world)).train_batches(lambda: 2)
        for rank in range(world)
    ]
    assert sum(len(labels) for _, labels in alone) == (samples or 41)
    for index, (together, (images, labels)) in enumerate(zip(zip(*loaders, strict=True), alone, strict=True)):
        shards = [loader.shard(index) for loader in loaders]
        parts = list(zip(together, shards, strict=True))
        if mixed:  # whole batches, whose shards are taken after mixing
            parts = [((part[0][shard.rows], part[1][shard.rows]), shard) for part, shard in parts]
        assert torch.equal(torch.cat([part[0] for part, shard in parts if shard.counts]), images)
        assert torch.equal(torch.cat([part[1] for part, shard in parts if shard.counts]), labels)


@pytest.mark.parametrize("count", [3, 300])
def test_validation_is_split_in_order_without_duplicates(count: int) -> None:
    arrays = FeatureArrays(np.arange(count, dtype=np.float32)[:, None], np.zeros(count, dtype=np.int64))
    seen = []
    for rank in range(2):
        module = FeatureDataModule(
            arrays, arrays, 16, EpochOrder(arrays.labels, 0), rank_info=RankInfo(rank, 2)
        )
        loader: BatchLoader = module.val_dataloader()
        rows = [int(row) for features, _ in loader for row in features[:, 0]]
        assert len(loader) == len(list(loader))
        seen += rows if loader.eval_shard.counts else []
    assert seen == list(range(count))


def test_a_whole_batch_is_its_own_shard() -> None:
    drawn = torch.arange(6)
    assert Shard.whole(6).select(drawn).data_ptr() == drawn.data_ptr()
    assert RankInfo().shard(6) == Shard.whole(6)
