"""Which images each epoch of a run visits, in which order; and the seeds of a run's random numbers.

Both data modules (`datamodule.py` and `features/datamodule.py`) draw their batches from an `EpochOrder`. What
an epoch visits depends on the seed and the epoch's number alone, so a resumed run goes on as if it had never
stopped, and all ranks agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Each kind of draw has a random stream of its own, so that switching one on does not change the others.
ORDER_STREAM, AUGMENT_STREAM, FLIP_STREAM, MIX_STREAM, VIEW_STREAM = range(5)


def stream_seed(seed: int, *place: int) -> int:
    """Return a seed for one place in the run, such as (stream, epoch, batch); below 2^63.

    No draw depends on an earlier one, so a resumed run continues as if it had never stopped.
    """
    mixed = np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0]
    return int(mixed) & (2**63 - 1)


@dataclass(frozen=True)
class EpochOrder:
    """The training images of each epoch: pass after pass over all of them, each pass a new permutation.

    An epoch takes the next `len(self)` images of this endless sequence. With `samples_per_epoch=None` an
    epoch is one pass.

    Args:
        count: N, the number of training images.
        seed: Determines the permutations.
        samples_per_epoch: Images in an epoch, fewer or more than N; None for N.
    """

    count: int
    seed: int
    samples_per_epoch: int | None = None

    def __len__(self) -> int:
        """Return the number of images n in an epoch."""
        return self.samples_per_epoch or self.count

    def images(self, epoch: int) -> np.ndarray:
        """Return the images of an epoch in the order of their visits, int64 (n,): positions in the split."""
        start, stop = epoch * len(self), (epoch + 1) * len(self)
        parts = []
        while start < stop:
            number, position = divmod(start, self.count)
            permutation = np.random.default_rng([self.seed, ORDER_STREAM, number]).permutation(self.count)
            parts.append(permutation[position : position + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts)

    def passes(self, epoch: int) -> np.ndarray:
        """Return the number of the pass (from 0) in which an epoch visits each of its images, int64 (n,)."""
        return (epoch * len(self) + np.arange(len(self))) // self.count
