"""Batches of cached activations for Lightning, in the order of the images in a run without the cache.

`harness.training.cached_features` fills `FeatureArrays` from a cache entry and returns a `FeatureDataModule`,
which the Trainer gets in place of `ImageDataModule`. The network then runs only the part behind the frozen
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from harness.data.datamodule import BatchLoader, eval_batches
from harness.data.epochs import VIEW_STREAM, EpochOrder
from harness.data.sharding import SINGLE_PROCESS, RankInfo


class FeatureArrays:
    """One split's activations, in place of :class:`harness.data.splits.ImageArrays`.

    Args:
        rows: float16 or float32 (V · N, …): view 0 of all N images, then view 1, and so on. Feature maps are
            (H, W, C).
        labels: int64 (N,); of multi-label images float32 (N, K).
        num_views: V, the kept views of each image.
        at: int64 (V · N,), where these rows lie in `rows`, which then holds those of more images; None: in
            their order.
    """

    def __init__(
        self, rows: np.ndarray, labels: np.ndarray, num_views: int = 1, at: np.ndarray | None = None
    ) -> None:
        self.rows = rows
        self.labels = np.concatenate([labels] * num_views)
        self.num_views = num_views
        self._at = at

    def __len__(self) -> int:
        """Return the number of images N; an epoch shows each image in one of its views."""
        return len(self.labels) // self.num_views

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield a copy of the rows for each batch of row numbers."""
        at = self._at
        return (np.take(self.rows, batch if at is None else at[batch], axis=0) for batch in batches)


class FeatureDataModule(pl.LightningDataModule):
    """Feeds cached activations to Lightning; an image can have another view in each epoch.

    Args:
        train: The training split.
        val: The validation split, in one view.
        batch_size: Images in a batch, over all ranks together.
        epochs: The images of each epoch; its seed determines the first view of each if `views` is None.
        views: Takes an epoch and returns the view of each image, int (n,), in the order of that epoch.
            None shows all views in turn, visit after visit, beginning at a random one.
        pin_memory: Whether batches are copied into pinned memory.
        rank_info: The rank of this process, and the number of ranks.
    """

    def __init__(
        self,
        train: FeatureArrays,
        val: FeatureArrays,
        batch_size: int,
        epochs: EpochOrder,
        *,
        views: Callable[[int], np.ndarray] | None = None,
        pin_memory: bool = False,
        rank_info: RankInfo = SINGLE_PROCESS,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.batch_size = batch_size
        self.epochs = epochs
        self.views = views
        self.pin_memory = pin_memory
        self.rank_info = rank_info

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows of an epoch, int64 (n,): images in the order without a cache, in one view each."""
        count, num_views = len(self.train), self.train.num_views
        images, before = self.epochs.visits(epoch)
        if self.views is not None:
            return self.views(epoch) * count + images
        offsets = np.random.default_rng([self.epochs.seed, VIEW_STREAM]).integers(num_views, size=count)
        return (offsets[images] + before) % num_views * count + images

    def images_again(self, epoch: int, device: torch.device) -> Iterator[Tensor]:
        """Yield the training activations of an epoch, this rank's shard of each batch."""
        for activations, _ in self._batches(lambda: epoch):
            yield activations.to(device)

    def train_dataloader(self) -> BatchLoader:
        return self._batches(self._epoch)

    def _batches(self, epoch: Callable[[], int]) -> BatchLoader:
        return BatchLoader(
            self.train,
            self.batch_size,
            lambda: self.order(epoch()),
            num_samples=len(self.epochs),
            pin=self.pin_memory,
            rank_info=self.rank_info,
        )

    def val_dataloader(self) -> BatchLoader:
        return eval_batches(self.val, self.batch_size, pin_memory=self.pin_memory, rank_info=self.rank_info)

    def _epoch(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch
