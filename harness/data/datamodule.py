"""Batches for Lightning: gathered from memory maps, augmented on the device, the same after a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from harness.config.schema import AugmentConfig, DataConfig
from harness.data.mixing import BatchMix
from harness.data.shares import ALONE, Seat, Share
from harness.data.splits import ImageSplits
from harness.data.transforms import BatchAugment, check_fits

SMALLEST_EVAL_BATCH = 128  # without gradients more fits; far larger ones leave a CPU's caches
ORDER_STREAM, AUGMENT_STREAM, FLIP_STREAM, MIX_STREAM, VIEW_STREAM = range(5)  # kept apart in one seed

Batch = tuple[Tensor, Tensor]  # uint8 (B, 3, H, W) in channels_last, int64 (B,)


class Arrays(Protocol):
    """What batches are made of: images, or what stands in for them."""

    @property
    def labels(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the rows of each batch, maps in (B, H, W, C) order."""
        ...


class BatchLoader:
    """An iterable of batches in the order that `order` gives at the start of each pass.

    It replaces a DataLoader with workers: gathering decoded rows takes microseconds. Images that would not
    fit in memory come from one in the same order, as the same bytes (`ImageFiles.stream`).
    """

    def __init__(
        self,
        arrays: Arrays,
        batch_size: int,
        order: Callable[[], np.ndarray] | None = None,
        *,
        pin: bool = False,
        seat: Seat = ALONE,
        takes_shares: bool = True,
    ) -> None:
        """Prepare a pass.

        Args:
            order: Returns positions in `arrays`; None for their own order, every image included. With an
                order, i.e. in training, a last batch of a single image is left out: batch norm has no
                variance to take from it.
            seat: In training, what this process takes of each batch; otherwise, of all images.
            takes_shares: False yields whole training batches, for whoever takes the share later.
        """
        self.arrays = arrays
        self.batch_size = batch_size
        self._order = order
        self._pin = pin
        self._seat = seat
        self._takes_shares = takes_shares

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[Batch]:
        batches = self._positions()
        for positions, rows in zip(batches, self.arrays.stream(batches), strict=True):
            yield self._batch(positions, rows)

    def share(self, index: int) -> Share:
        """Return what this process takes of a training batch."""
        start = self._starts()[index]
        return self._seat.share(min(self.batch_size, len(self.arrays) - start))

    @property
    def eval_share(self) -> Share:
        """What this process takes of all images, in their order."""
        return self._seat.share(len(self.arrays))

    def _positions(self) -> list[np.ndarray]:
        if self._order is None:
            order = np.arange(len(self.arrays))[self.eval_share.rows]
            return [order[start : start + self.batch_size] for start in self._starts()]
        order = self._order()
        batches = [order[start : start + self.batch_size] for start in self._starts()]
        if not self._takes_shares:
            return batches
        return [batch[self.share(index).rows] for index, batch in enumerate(batches)]

    def _starts(self) -> range:
        if self._order is None:
            share = self.eval_share
            return range(0, share.stop - share.start, self.batch_size)
        count = len(self.arrays)
        is_single_left = self.batch_size > 1 and count % self.batch_size == 1
        return range(0, count - 1 if is_single_left and count > 1 else count, self.batch_size)

    def _batch(self, positions: np.ndarray, rows: np.ndarray) -> Batch:
        images = torch.from_numpy(rows)
        if images.ndim == 4:
            images = images.permute(0, 3, 1, 2)
        labels = torch.from_numpy(self.arrays.labels[positions])
        return (images.pin_memory(), labels.pin_memory()) if self._pin else (images, labels)


def eval_batches(
    arrays: Arrays, batch_size: int, *, pin_memory: bool = False, seat: Seat = ALONE
) -> BatchLoader:
    """Return every image of a split once, in its own order, for any evaluation without gradients."""
    return BatchLoader(arrays, max(batch_size, SMALLEST_EVAL_BATCH), pin=pin_memory, seat=seat)


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch, int64 (count,)."""
    return np.random.default_rng([seed, ORDER_STREAM, epoch]).permutation(count)


def stream_seed(seed: int, *place: int) -> int:
    """Mix a seed and a place in the run into a new seed, so that nothing depends on what was drawn before."""
    mixed = np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0]
    return int(mixed) & (2**63 - 1)


class ImageDataModule(pl.LightningDataModule):
    """Feeds a run's splits to Lightning; order and augmentation depend on (seed, epoch, batch) alone.

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
        seat: Seat = ALONE,
    ) -> None:
        super().__init__()
        check_fits(augment, *splits.train.images.shape[1:3])
        self.splits = splits
        self.batch_size = data.batch_size
        self.seed = seed
        self.pin_memory = pin_memory
        self.seat = seat
        self._augment = BatchAugment(augment)
        self._mix = BatchMix(augment, len(splits.class_names))
        self._alternates = augment.flip == "alternating"
        self._flips_in_order = (-1, np.empty(0, dtype=bool))  # of which epoch, and what

    # ── without a Trainer ─────────────────────────────────────────────────────────────────────────

    def train_batches(self, epoch: Callable[[], int]) -> BatchLoader:
        """Return a loader of the training split; `epoch` is asked at the start of each pass."""
        return BatchLoader(
            self.splits.train,
            self.batch_size,
            lambda: self.order(epoch()),
            pin=self.pin_memory,
            seat=self.seat,
            takes_shares=not self._mix.is_on,  # an image may be mixed with any other of its batch
        )

    def order(self, epoch: int) -> np.ndarray:
        """Return the order in which an epoch visits the training split."""
        return shuffled(len(self.splits.train), self.seed, epoch)

    def augment(self, images: Tensor, epoch: int, batch_index: int, share: Share | None = None) -> Tensor:
        """Augment a training batch, or a share of it, with the draws that belong to its place in the run."""
        share = share or Share.whole(len(images))
        generator = self._generator(images.device, epoch, batch_index)
        if not self._alternates:
            return self._augment(images, generator, share=share)
        if self._flips_in_order[0] != epoch:  # once an epoch, not for every batch
            self._flips_in_order = epoch, self.alternating_flips(epoch)[self.order(epoch)]
        start = batch_index * self.batch_size
        flips = torch.from_numpy(self._flips_in_order[1][start + share.start : start + share.stop])
        return self._augment(images, generator, flips.to(images.device), share)

    def flips(self, epoch: int, device: torch.device) -> np.ndarray:
        """Return which images `augment` mirrors on a device, bool (N,), in the order of the epoch."""
        if self._alternates:
            return self.alternating_flips(epoch)[self.order(epoch)]
        count = len(self.splits.train)
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
        """Return which training images an epoch mirrors, bool (N,): half at random, then the others, in turn.

        Source: K. Jordan, https://arxiv.org/abs/2404.00498, section 3.6.
        """
        rng = np.random.default_rng([self.seed, FLIP_STREAM])
        return (rng.random(len(self.splits.train)) < 0.5) ^ (epoch % 2 == 1)

    def mix(self, images: Tensor, labels: Tensor, epoch: int, batch_index: int) -> Batch:
        """Apply mixup and cutmix to an augmented batch; where on, its labels become probabilities (B, K)."""
        return self._mix(images, labels, stream_seed(self.seed, MIX_STREAM, epoch, batch_index))

    # ── Lightning's hooks ─────────────────────────────────────────────────────────────────────────

    def train_dataloader(self) -> BatchLoader:
        return self.train_batches(lambda: self._trainer().current_epoch)

    def val_dataloader(self) -> BatchLoader:
        return eval_batches(self.splits.val, self.batch_size, pin_memory=self.pin_memory, seat=self.seat)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        trainer = self._trainer()
        if not trainer.training:
            return batch
        images, labels = batch
        # Lightning moves a batch just before it counts it, so what is "ready" is this batch's index.
        batch_index = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        loader = trainer.train_dataloader
        assert isinstance(loader, BatchLoader)
        share = loader.share(batch_index)
        if not self._mix.is_on:
            return self.augment(images, trainer.current_epoch, batch_index, share), labels
        images = self.augment(images, trainer.current_epoch, batch_index)
        images, labels = self.mix(images, labels, trainer.current_epoch, batch_index)
        return images[share.rows], labels[share.rows]

    def _trainer(self) -> pl.Trainer:
        assert self.trainer is not None, "the Trainer attaches itself before it calls a hook"
        return self.trainer
