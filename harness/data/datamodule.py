"""Batches of images for Lightning: gathered from memory maps, augmented on the device, reproducible.

`harness.training.train` hands an `ImageDataModule` to the Trainer. Its `BatchLoader` is used in place of
torch's DataLoader. The same seed gives the same batches after a resume and on any number of ranks, because
the random numbers of a batch come from a generator seeded with its epoch and index.
`features/datamodule.py` does the same for cached activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from harness.config.schema import AugmentConfig, DataConfig
from harness.data.augment.mixing import BatchMix
from harness.data.augment.transforms import BatchAugment, check_fits
from harness.data.epochs import AUGMENT_STREAM, FLIP_STREAM, MIX_STREAM, EpochOrder, stream_seed
from harness.data.sharding import SINGLE_PROCESS, RankInfo, Shard
from harness.data.splits import ImageSplits

# Evaluation keeps no activations for a backward pass, so larger batches than in training fit in memory;
# much larger ones would not fit in a CPU's caches.
MIN_EVAL_BATCH = 128
Batch = tuple[Tensor, Tensor]  # uint8 (B, 3, H, W) in channels_last, int64 (B,)


class Arrays(Protocol):
    """The rows of a split, from which batches are made: images, or cached activations of images."""

    @property
    def labels(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the rows of each batch of positions; images and feature maps are (B, H, W, C)."""
        ...


class BatchLoader:
    """An iterable of batches; `order` is called at the start of each pass over the images.

    It replaces torch's DataLoader: gathering decoded rows takes microseconds, so no worker processes are
    needed. Only images that do not fit in memory come from worker processes (`ImageFiles.stream`), in the
    same order and with the same pixels.
    """

    def __init__(
        self,
        arrays: Arrays,
        batch_size: int,
        order: Callable[[], np.ndarray] | None = None,
        *,
        num_samples: int | None = None,
        pin: bool = False,
        rank_info: RankInfo = SINGLE_PROCESS,
        is_sharded: bool = True,
    ) -> None:
        """Set up the loader; nothing is read yet.

        Args:
            arrays: The split.
            batch_size: Images in a batch, over all ranks together.
            order: Given in training only: returns positions in `arrays`, int64 (n,). None means evaluation:
                every image once, in its own order.
            num_samples: The length n of such an order; None: as many as there are images.
            pin: Whether batches are copied into pinned memory.
            rank_info: Determines this rank's shard of each batch in training, of all images in evaluation.
            is_sharded: False yields whole training batches; the caller takes the shard later.
        """
        self.arrays = arrays
        self.batch_size = batch_size
        self._order = order
        self._num_samples = len(arrays) if num_samples is None else num_samples
        self._pin = pin
        self._rank_info = rank_info
        self._is_sharded = is_sharded

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[Batch]:
        batches = self._positions()
        for positions, rows in zip(batches, self.arrays.stream(batches), strict=True):
            yield self._batch(positions, rows)

    def shard(self, index: int) -> Shard:
        """Return this rank's shard of a training batch, by the batch's index in the epoch."""
        start = self._starts()[index]
        return self._rank_info.shard(min(self.batch_size, self._num_samples - start))

    @property
    def eval_shard(self) -> Shard:
        """This rank's shard of all images, for evaluation."""
        return self._rank_info.shard(len(self.arrays))

    def _positions(self) -> list[np.ndarray]:
        if self._order is None:
            order = np.arange(len(self.arrays))[self.eval_shard.rows]
            return [order[start : start + self.batch_size] for start in self._starts()]
        order = self._order()
        batches = [order[start : start + self.batch_size] for start in self._starts()]
        if not self._is_sharded:
            return batches
        return [batch[self.shard(index).rows] for index, batch in enumerate(batches)]

    def _starts(self) -> range:
        if self._order is None:
            shard = self.eval_shard
            return range(0, shard.stop - shard.start, self.batch_size)
        count = self._num_samples
        # A last training batch of a single image is left out: batch norm cannot take a variance from it.
        is_single_left = self.batch_size > 1 and count % self.batch_size == 1
        return range(0, count - 1 if is_single_left and count > 1 else count, self.batch_size)

    def _batch(self, positions: np.ndarray, rows: np.ndarray) -> Batch:
        images = torch.from_numpy(rows)
        if images.ndim == 4:
            images = images.permute(0, 3, 1, 2)
        labels = torch.from_numpy(self.arrays.labels[positions])
        return (images.pin_memory(), labels.pin_memory()) if self._pin else (images, labels)


def eval_batches(
    arrays: Arrays, batch_size: int, *, pin_memory: bool = False, rank_info: RankInfo = SINGLE_PROCESS
) -> BatchLoader:
    """Return a loader of every image of a split once, in its own order, for evaluation without gradients."""
    return BatchLoader(arrays, max(batch_size, MIN_EVAL_BATCH), pin=pin_memory, rank_info=rank_info)


class ImageDataModule(pl.LightningDataModule):
    """Feeds a run's splits to Lightning; order and augmentation depend on (seed, epoch, batch) only.

    Args:
        splits: The training and validation images.
        data: The section `data` of the configuration; its sizes of batch and epoch are used.
        augment: The augmentation of training batches.
        seed: Determines the order and all random numbers.
        pin_memory: Whether batches are copied into pinned memory.
        rank_info: The rank of this process, and the number of ranks.

    Raises:
        ConfigError: If the augmentation does not fit the images.
    """

    def __init__(
        self,
        splits: ImageSplits,
        data: DataConfig,
        augment: AugmentConfig,
        seed: int,
        *,
        pin_memory: bool = False,
        rank_info: RankInfo = SINGLE_PROCESS,
    ) -> None:
        super().__init__()
        check_fits(augment, *splits.train.images.shape[1:3])
        self.splits = splits
        self.batch_size = data.batch_size
        self.seed = seed
        self.epochs = EpochOrder(splits.train.labels, seed, data.samples_per_epoch, data.sampling)
        self.pin_memory = pin_memory
        self.rank_info = rank_info
        self._augment = BatchAugment(augment)
        self._mix = BatchMix(augment, len(splits.class_names))
        self._alternates = augment.flip == "alternating"
        # The alternating flips of the latest epoch, in its order: (epoch, bool (n,)).
        self._flips_in_order = (-1, np.empty(0, dtype=bool))

    # ── without a Trainer ─────────────────────────────────────────────────────────────────────────

    def train_batches(self, epoch: Callable[[], int]) -> BatchLoader:
        """Return a loader of the training split; `epoch()` is called at the start of each pass."""
        return BatchLoader(
            self.splits.train,
            self.batch_size,
            lambda: self.order(epoch()),
            num_samples=len(self.epochs),
            pin=self.pin_memory,
            rank_info=self.rank_info,
            # Mixing may take any image of the batch as a partner, so every rank needs the whole batch.
            is_sharded=not self._mix.is_on,
        )

    def order(self, epoch: int) -> np.ndarray:
        """Return the images of the training split that an epoch visits, in its order, int64 (n,)."""
        return self.epochs.images(epoch)

    def augment(self, images: Tensor, epoch: int, batch_index: int, shard: Shard | None = None) -> Tensor:
        """Return a training batch, or a shard of it, augmented.

        Args:
            images: uint8 (B, 3, H, W), on any device.
            epoch: Determines all random numbers, with `batch_index` and the seed.
            batch_index: Within the epoch.
            shard: The part of the batch that `images` is; None for the whole batch.
        """
        shard = shard or Shard.whole(len(images))
        generator = self._generator(images.device, epoch, batch_index)
        if not self._alternates:
            return self._augment(images, generator, shard=shard)
        if self._flips_in_order[0] != epoch:  # computed once per epoch rather than for every batch
            self._flips_in_order = epoch, self.alternating_flips(epoch)
        start = batch_index * self.batch_size
        flips = torch.from_numpy(self._flips_in_order[1][start + shard.start : start + shard.stop])
        return self._augment(images, generator, flips.to(images.device), shard)

    def flips(self, epoch: int, device: torch.device) -> np.ndarray:
        """Return which images `augment` mirrors in an epoch, bool (n,), in the order of the epoch.

        Cached features need this: for a flip, the activations of both views are kept. The device matters
        because the same seed draws other numbers on a GPU than on a CPU.
        """
        if self._alternates:
            return self.alternating_flips(epoch)
        count = len(self.epochs)
        flips = []
        for batch_index, start in enumerate(range(0, count, self.batch_size)):
            generator = self._generator(device, epoch, batch_index)
            _, flips_B = self._augment.draw_windows(min(self.batch_size, count - start), generator)
            flips.append(flips_B.cpu().numpy())
        return np.concatenate(flips)

    def _generator(self, device: torch.device, epoch: int, batch_index: int) -> torch.Generator:
        generator = torch.Generator(device)
        return generator.manual_seed(stream_seed(self.seed, AUGMENT_STREAM, epoch, batch_index))

    def alternating_flips(self, epoch: int) -> np.ndarray:
        """Return which images an epoch mirrors, bool (n,), in the order of the epoch.

        A random half of the images is mirrored when they come first, third, …, the other half when they come
        second, fourth, …: so all are in turn, pass after pass.

        Source: K. Jordan, https://arxiv.org/abs/2404.00498, section 3.6.
        """
        first = np.random.default_rng([self.seed, FLIP_STREAM]).random(self.epochs.count) < 0.5
        images, before = self.epochs.visits(epoch)
        return first[images] ^ (before % 2 == 1)

    def mix(self, images: Tensor, labels: Tensor, epoch: int, batch_index: int) -> Batch:
        """Apply mixup and cutmix, if on, to an augmented batch; labels then become probabilities (B, K).

        From `augment.mix_off_epoch` on, the batch is returned as it is.
        """
        return self._mix(images, labels, stream_seed(self.seed, MIX_STREAM, epoch, batch_index), epoch)

    # ── Lightning's hooks ─────────────────────────────────────────────────────────────────────────

    def train_dataloader(self) -> BatchLoader:
        return self.train_batches(lambda: self._trainer().current_epoch)

    def val_dataloader(self) -> BatchLoader:
        return eval_batches(
            self.splits.val, self.batch_size, pin_memory=self.pin_memory, rank_info=self.rank_info
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        trainer = self._trainer()
        if not trainer.training:
            return batch
        # Lightning gives this hook no batch index. It increments `ready` only after this hook, so `ready`
        # still holds the number of batches before this one, which is this one's index.
        batch_index = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        loader = trainer.train_dataloader
        assert isinstance(loader, BatchLoader)
        return self._prepared(batch, trainer.current_epoch, batch_index, loader.shard(batch_index))

    def _prepared(self, batch: Batch, epoch: int, batch_index: int, shard: Shard) -> Batch:
        """Return this rank's shard of a training batch, augmented and mixed."""
        images, labels = batch
        if not self._mix.is_on:
            return self.augment(images, epoch, batch_index, shard), labels
        images = self.augment(images, epoch, batch_index)
        images, labels = self.mix(images, labels, epoch, batch_index)
        return images[shard.rows], labels[shard.rows]

    def images_again(self, epoch: int, device: torch.device) -> Iterator[Tensor]:
        """Yield the training images of an epoch as they were trained on, this rank's shard of each batch."""
        loader = self.train_batches(lambda: epoch)
        for index, (images, labels) in enumerate(loader):
            batch = images.to(device), labels.to(device)
            yield self._prepared(batch, epoch, index, loader.shard(index))[0]

    def _trainer(self) -> pl.Trainer:
        assert self.trainer is not None, "the Trainer attaches itself before it calls a hook"
        return self.trainer
