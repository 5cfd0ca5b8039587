"""Batches of cached activations, in the order in which their images would have come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytorch_lightning as pl

from harness.data.datamodule import VIEW_STREAM, BatchLoader, eval_batches, shuffled
from harness.data.shares import ALONE, Seat


class FeatureArrays:
    """One split's activations, in place of :class:`ImageArrays`."""

    def __init__(self, rows: np.ndarray, labels: np.ndarray, num_views: int = 1) -> None:
        """Keep them.

        Args:
            rows: float16 or float32 (V · N, …), view after view of N images; maps are in (H, W, C) order.
            labels: int64 (N,).
            num_views: V, of each image.
        """
        self.rows = rows
        self.labels = np.tile(labels, num_views)
        self.num_views = num_views

    def __len__(self) -> int:
        """Return the number of images: a pass shows each in one view."""
        return len(self.labels) // self.num_views

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield a copy of the rows for each batch of row numbers."""
        return (np.take(self.rows, batch, axis=0) for batch in batches)


class FeatureDataModule(pl.LightningDataModule):
    """Feeds cached activations to Lightning. An image's view changes from one epoch to the next.

    Args:
        views: given an epoch, which view each image of its order shows, int (N,); None for all in turn.
    """

    def __init__(
        self,
        train: FeatureArrays,
        val: FeatureArrays,
        batch_size: int,
        seed: int,
        *,
        views: Callable[[int], np.ndarray] | None = None,
        pin_memory: bool = False,
        seat: Seat = ALONE,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.batch_size = batch_size
        self.seed = seed
        self.views = views
        self.pin_memory = pin_memory
        self.seat = seat

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows that an epoch visits: the images in the uncached path's order, each in one view."""
        count, num_views = len(self.train), self.train.num_views
        images = shuffled(count, self.seed, epoch)
        if self.views is not None:
            return self.views(epoch) * count + images
        offsets = np.random.default_rng([self.seed, VIEW_STREAM]).integers(num_views, size=count)
        return (offsets[images] + epoch) % num_views * count + images

    def train_dataloader(self) -> BatchLoader:
        return BatchLoader(
            self.train,
            self.batch_size,
            lambda: self.order(self._epoch()),
            pin=self.pin_memory,
            seat=self.seat,
        )

    def val_dataloader(self) -> BatchLoader:
        return eval_batches(self.val, self.batch_size, pin_memory=self.pin_memory, seat=self.seat)

    def _epoch(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch
