"""Divides each batch among the ranks: the processes that train one model together.

The part of a rank is its shard. Every rank draws the random numbers of the augmentation for the whole batch,
and uses those of its own shard. So all ranks together train on exactly the images that a single process
would. `datamodule.py` cuts the batches, `augment/` augments them, and
`harness.training.devices.collectives` says which rank this process is.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MIN_SHARD_SIZE = 2  # images; batch norm cannot compute a variance from one


@dataclass(frozen=True)
class Shard:
    """A range of a batch's images: those from `start` up to `stop`.

    Args:
        total: Number of images in the whole batch.
        weight: Factor for this shard's mean loss; the mean over ranks is then the whole batch's mean loss.
        counts: Whether this rank's loss and metrics enter the totals; False where another rank has the same
            images and reports on them.
    """

    total: int
    start: int
    stop: int
    weight: float = 1.0
    counts: bool = True

    @classmethod
    def whole(cls, total: int) -> Shard:
        return cls(total, 0, total)

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    def select(self, drawn: Tensor, dim: int = 0) -> Tensor:
        """Return this shard's draws out of those for the whole batch, as a view."""
        return drawn.narrow(dim, self.start, self.stop - self.start)

    def whole_like(self, images_BCHW: Tensor) -> Tensor:
        """Return a stand-in for the whole batch that has its shape, type and device, and takes no memory."""
        return images_BCHW[:1].expand(self.total, *images_BCHW.shape[1:])


@dataclass(frozen=True)
class RankInfo:
    """The rank of this process, and the number of processes that train together."""

    rank: int = 0
    world_size: int = 1

    def shard(self, total: int) -> Shard:
        """Return this rank's shard of a batch; shards differ by one image at most.

        Args:
            total: Number of images in the whole batch.
        """
        if total < MIN_SHARD_SIZE * self.world_size:
            # Too small to divide: every rank takes the whole batch. That costs little, and it is correct,
            # because the average of equal gradients is that gradient. Only rank 0 reports on it.
            return Shard(total, 0, total, counts=self.rank == 0)
        start, stop = (total * rank // self.world_size for rank in (self.rank, self.rank + 1))
        # DDP averages the ranks' gradients with equal weight, although shards differ in size.
        return Shard(total, start, stop, weight=(stop - start) * self.world_size / total)


SINGLE_PROCESS = RankInfo()
