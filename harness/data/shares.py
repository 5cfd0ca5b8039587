"""Which part of a batch each of several processes takes that train one model together.

All of them draw for the whole batch and apply the draws of their own part, so that together they train on
exactly what one process would.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

SMALLEST_SHARE = 2  # images; batch norm has no variance to take from a single one


@dataclass(frozen=True)
class Share:
    """A range of a batch's images.

    Args:
        total: images of the whole batch.
        weight: of the mean loss over this part; with it, the average over processes is the batch's mean.
        counts: False where another process reports on the same images.
    """

    total: int
    start: int
    stop: int
    weight: float = 1.0
    counts: bool = True

    @classmethod
    def whole(cls, total: int) -> Share:
        return cls(total, 0, total)

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    def of(self, drawn: Tensor, dim: int = 0) -> Tensor:
        """Return this part's draws out of those for the whole batch, as a view."""
        return drawn.narrow(dim, self.start, self.stop - self.start)

    def whole_like(self, images_BCHW: Tensor) -> Tensor:
        """Return a stand-in for the whole batch that has its shape, type and device, and takes no memory."""
        return images_BCHW[:1].expand(self.total, *images_BCHW.shape[1:])


@dataclass(frozen=True)
class Seat:
    """A process's place among those that train together."""

    rank: int = 0
    world: int = 1

    def share(self, total: int) -> Share:
        """Return what this process takes of a batch: the parts differ by one image at most.

        A batch with fewer than two images for each is taken whole by everyone: small, so that it costs
        nothing, and right, since the average of equal gradients is that gradient.
        """
        if total < SMALLEST_SHARE * self.world:
            return Share(total, 0, total, counts=self.rank == 0)
        start, stop = (total * rank // self.world for rank in (self.rank, self.rank + 1))
        return Share(total, start, stop, weight=(stop - start) * self.world / total)


ALONE = Seat()
