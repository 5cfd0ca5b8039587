"""Batches of cached activations, in the order in which their images would have come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch

from harness.data.datamodule import SMALLEST_EVAL_BATCH, Batch, BatchLoader, shuffled

VIEW_STREAM = 2  # of random numbers, beside those of harness.data.datamodule


@dataclass(frozen=True)
class FeatureArrays:
    """One split's activations.

    Args:
        rows: float16 or float32 (views · N, …), view after view; maps are in (H, W, C) order.
        labels: int64 (N,).
        num_views: of each image.
    """

    rows: np.ndarray
    labels: np.ndarray
    num_views: int = 1

    def __len__(self) -> int:
        return len(self.labels)


class FeatureLoader(BatchLoader):
    """A BatchLoader whose order names rows of a :class:`FeatureArrays`."""

    arrays: FeatureArrays  # type: ignore[assignment]

    def _batch(self, positions: np.ndarray) -> Batch:
        rows = torch.from_numpy(np.take(self.arrays.rows, positions, axis=0))
        features = rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows
        labels = torch.from_numpy(self.arrays.labels[positions % len(self.arrays)])
        return (features.pin_memory(), labels.pin_memory()) if self._pin else (features, labels)


class FeatureDataModule(pl.LightningDataModule):
    """Feeds cached activations to Lightning. An image's view changes from one epoch to the next."""

    def __init__(
        self,
        train: FeatureArrays,
        val: FeatureArrays,
        batch_size: int,
        seed: int,
        *,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.batch_size = batch_size
        self.seed = seed
        self.pin_memory = pin_memory

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows that an epoch visits: the images in the uncached path's order, each in one view."""
        count, num_views = len(self.train), self.train.num_views
        offsets = np.random.default_rng([self.seed, VIEW_STREAM]).integers(num_views, size=count)
        images = shuffled(count, self.seed, epoch)
        return (offsets[images] + epoch) % num_views * count + images

    def train_dataloader(self) -> BatchLoader:
        trainer = self.trainer
        return FeatureLoader(
            self.train,  # type: ignore[arg-type]
            self.batch_size,
            lambda: self.order(trainer.current_epoch if trainer is not None else 0),
            pin=self.pin_memory,
        )

    def val_dataloader(self) -> BatchLoader:
        return FeatureLoader(self.val, max(self.batch_size, SMALLEST_EVAL_BATCH), pin=self.pin_memory)  # type: ignore[arg-type]
