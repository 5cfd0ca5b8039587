"""Batches: every image once, in an order that a resumed run repeats, augmented in training alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from harness.config.schema import AugmentConfig, DigitsData
from harness.data.datamodule import Batch, BatchLoader, ImageDataModule, eval_batches
from harness.data.splits import ImageArrays, ImageSplits
from harness.errors import ConfigError

FLIP_AND_CROP = AugmentConfig(flip=True, crop_padding=2)


def module_of(
    splits: ImageSplits, augment: AugmentConfig | None = None, *, batch_size: int = 8, seed: int = 0
) -> ImageDataModule:
    return ImageDataModule(splits, DigitsData(batch_size=batch_size), augment or AugmentConfig(), seed)


def rows_of(batches: list[Batch]) -> list[int]:
    return [int(row) for images, _ in batches for row in images[:, 0, 0, 0]]


# ── batches ───────────────────────────────────────────────────────────────────────────────────────


def test_an_epoch_visits_every_training_image_once(splits: ImageSplits) -> None:
    module = module_of(splits, batch_size=8)
    loader = module.train_batches(lambda: 0)
    batches = list(loader)
    assert len(loader) == len(batches) == 5  # 41 images: the sixth batch would hold one
    assert len(set(rows_of(batches))) == 40
    assert set(rows_of(batches)) <= set(splits.train.indices)


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(10, [10] * 4), (13, [13, 13, 13, 2]), (1, [1] * 41), (41, [41])]
)
def test_only_a_single_left_over_image_is_dropped(
    splits: ImageSplits, batch_size: int, sizes: list[int]
) -> None:
    loader = module_of(splits, batch_size=batch_size).train_batches(lambda: 0)
    assert [len(labels) for _, labels in loader] == sizes
    assert len(loader) == len(sizes)


def test_images_keep_their_labels_types_and_layout(splits: ImageSplits) -> None:
    for images, labels in module_of(splits).train_batches(lambda: 3):
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert images.shape[1:] == (3, 8, 8)
        assert images.is_contiguous(memory_format=torch.channels_last)
        rows = images[:, 0, 0, 0].long()
        assert torch.equal(labels, rows % 3)
        expected = torch.from_numpy(splits.train.images[rows.numpy()]).permute(0, 3, 1, 2)
        assert torch.equal(images, expected)


def test_evaluation_sees_every_image_in_order(splits: ImageSplits) -> None:
    batches = list(module_of(splits).val_dataloader())
    assert rows_of(batches) == splits.val.indices.tolist()
    single = ImageArrays(splits.val.images, splits.val.labels[:1], splits.val.indices[:1])
    assert len(list(eval_batches(single, 8))) == 1
    long = ImageArrays(splits.val.images, np.zeros(1001, np.int64), np.zeros(1001, np.int64))
    assert [len(labels) for _, labels in eval_batches(long, 8)] == [128] * 7 + [105]
    assert [len(labels) for _, labels in eval_batches(long, 800)] == [800, 201]


def test_a_read_only_memory_map_is_never_written(splits: ImageSplits) -> None:
    frozen = splits.train.images.copy()
    frozen.flags.writeable = False
    arrays = ImageArrays(frozen, splits.train.labels, splits.train.indices)
    for images, _ in BatchLoader(arrays, 8):
        images.fill_(0)
    np.testing.assert_array_equal(frozen, splits.train.images)


# ── order and draws ───────────────────────────────────────────────────────────────────────────────


def test_order_depends_on_seed_and_epoch_alone(splits: ImageSplits) -> None:
    one, same, other = module_of(splits), module_of(splits), module_of(splits, seed=1)
    np.testing.assert_array_equal(one.order(5), same.order(5))
    assert sorted(one.order(5)) == list(range(41))
    assert not np.array_equal(one.order(5), one.order(6))
    assert not np.array_equal(one.order(5), other.order(5))


def test_draws_depend_on_seed_epoch_and_batch_alone(splits: ImageSplits) -> None:
    module = module_of(splits, FLIP_AND_CROP)
    images, _ = next(iter(module.val_dataloader()))
    first = module.augment(images, epoch=2, batch_index=3)
    for epoch, batch_index in ((0, 0), (2, 4), (3, 3), (3, 2)):
        assert not torch.equal(module.augment(images, epoch, batch_index), first)
    assert torch.equal(module_of(splits, FLIP_AND_CROP).augment(images, 2, 3), first)
    assert not torch.equal(module_of(splits, FLIP_AND_CROP, seed=9).augment(images, 2, 3), first)


def test_mixing_depends_on_seed_epoch_and_batch_alone(splits: ImageSplits) -> None:
    config = AugmentConfig(mixup_alpha=1.0, cutmix_alpha=1.0)
    module = module_of(splits, config)
    images, labels = next(iter(module.val_dataloader()))
    first, targets = module.mix(images, labels, 2, 3)
    assert targets.shape == (len(images), 3)
    for epoch, batch_index in ((0, 0), (2, 4), (3, 3), (3, 2)):
        assert not torch.equal(module.mix(images, labels, epoch, batch_index)[0], first)
    assert torch.equal(module_of(splits, config).mix(images, labels, 2, 3)[0], first)
    assert not torch.equal(module_of(splits, config, seed=9).mix(images, labels, 2, 3)[0], first)


def test_mixing_ends_with_its_off_epoch_and_was_until_then_what_it_is_without_one(
    splits: ImageSplits,
) -> None:
    ends, never = (module_of(splits, AugmentConfig(mixup_alpha=1.0, mix_off_epoch=off)) for off in (2, None))
    images, labels = next(iter(never.val_dataloader()))
    for epoch in (0, 1):
        pairs = zip(ends.mix(images, labels, epoch, 3), never.mix(images, labels, epoch, 3), strict=True)
        for found, expected in pairs:
            assert torch.equal(found, expected)
    for epoch in (2, 3):
        assert ends.mix(images, labels, epoch, 3) == (images, labels)


@pytest.mark.parametrize(
    ("augment", "problem"),
    [
        (AugmentConfig(crop_padding=8), "crop_padding=8"),
        (AugmentConfig(blur_sigma=2.5), r"blur_sigma=2\.5 reaches 8 pixels far, beyond images of 8x8"),
    ],
)
def test_augmentation_that_does_not_fit_is_refused_before_training(
    splits: ImageSplits, augment: AugmentConfig, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        module_of(splits, augment)


ALTERNATING = AugmentConfig(flip="alternating")


def mirrored_rows(module: ImageDataModule, epoch: int) -> set[int]:
    """Return the training images that reach the network mirrored in an epoch, by comparing pixels."""
    rows = set()
    for index, (images, _) in enumerate(module.train_batches(lambda: epoch)):
        shown = module.augment(images, epoch, index)
        changed = (shown != images).flatten(1).any(1)
        assert torch.equal(shown[changed], images[changed].flip(3))
        rows |= {int(row) for row in images[changed][:, 0, 0, 0]}
    return rows


def test_alternating_flips_mirror_every_image_in_one_of_two_epochs(splits: ImageSplits) -> None:
    module = module_of(splits, ALTERNATING, batch_size=13)
    first, second, third = (mirrored_rows(module, epoch) for epoch in range(3))
    assert first | second == set(splits.train.indices)
    assert not first & second
    assert third == first
    assert mirrored_rows(module_of(splits, ALTERNATING, batch_size=41), 1) == second
    assert mirrored_rows(module_of(splits, ALTERNATING, batch_size=13, seed=1), 0) != first


def test_alternating_flips_start_with_half_of_the_images_independently(splits: ImageSplits) -> None:
    flips = np.stack([module_of(splits, ALTERNATING, seed=seed).alternating_flips(0) for seed in range(500)])
    assert flips.shape == (500, 41)
    assert abs(flips.mean() - 0.5) < 0.02  # 20,500 draws: 5.7 deviations of 0.0035
    assert abs(flips.mean(axis=0) - 0.5).max() < 0.12  # of each image: 5.4 deviations of 0.022
    correlations = np.corrcoef(flips.T) - np.eye(41)
    assert abs(correlations).max() < 0.25  # 820 pairs: 5.6 deviations of 0.045


# ── under a Trainer ───────────────────────────────────────────────────────────────────────────────


class Recorder(pl.LightningModule):
    """Trains one number, and keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[tuple[int, int, Tensor]] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.trained.append((self.current_epoch, batch_index, batch[0].clone()))
        return self.weight * 1.0

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.validated.append(batch[0].clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(splits: ImageSplits, epochs: int, checkpoint: Path, resume: bool = False) -> Recorder:
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = module_of(splits, FLIP_AND_CROP, batch_size=16)
    trainer.fit(recorder, datamodule=module, ckpt_path=checkpoint if resume else None, weights_only=True)
    trainer.save_checkpoint(checkpoint)
    return recorder


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_sees_what_the_functions_give(splits: ImageSplits, tmp_path: Path) -> None:
    recorder = fit(splits, 2, tmp_path / "a.ckpt")
    module = module_of(splits, FLIP_AND_CROP, batch_size=16)
    expected = [
        (epoch, index, module.augment(images, epoch, index))
        for epoch in range(2)
        for index, (images, _) in enumerate(module.train_batches(lambda epoch=epoch: epoch))
    ]
    assert [step[:2] for step in recorder.trained] == [step[:2] for step in expected]
    for (_, _, seen), (_, _, wanted) in zip(recorder.trained, expected, strict=True):
        assert torch.equal(seen, wanted)
    whole = torch.from_numpy(splits.val.gather(slice(None))).permute(0, 3, 1, 2)
    assert all(torch.equal(seen, whole) for seen in recorder.validated)


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(splits: ImageSplits, tmp_path: Path) -> None:
    whole = fit(splits, 3, tmp_path / "whole.ckpt")
    fit(splits, 1, tmp_path / "part.ckpt")
    resumed = fit(splits, 3, tmp_path / "part.ckpt", resume=True)
    rest = [step for step in whole.trained if step[0] >= 1]
    assert [step[:2] for step in resumed.trained] == [step[:2] for step in rest]
    for (_, _, seen), (_, _, wanted) in zip(resumed.trained, rest, strict=True):
        assert torch.equal(seen, wanted)
