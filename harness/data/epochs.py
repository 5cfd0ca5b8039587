"""Which images each epoch of a run visits, in which order; and the seeds of a run's random numbers.

Both data modules (`datamodule.py` and `features/datamodule.py`) draw their batches from an `EpochOrder`. What
an epoch visits depends on the seed and the epoch's number alone, so a resumed run goes on as if it had never
stopped, and all ranks agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from harness.config.selection import Sampling

# Each kind of draw has a random stream of its own, so that switching one on does not change the others.
ORDER_STREAM, AUGMENT_STREAM, FLIP_STREAM, MIX_STREAM, VIEW_STREAM, CLASS_STREAM = range(6)


def stream_seed(seed: int, *place: int) -> int:
    """Return a seed for one place in the run, such as (stream, epoch, batch); below 2^63.

    No draw depends on an earlier one, so a resumed run continues as if it had never stopped.
    """
    mixed = np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0]
    return int(mixed) & (2**63 - 1)


def images_in_pass(labels: np.ndarray, sampling: Sampling) -> int:
    """Return how many images a pass over the training images visits, repeats included.

    Args:
        labels: int64 (N,), of the training images.
    """
    if sampling == "natural":
        return len(labels)
    _, sizes = np.unique(labels, return_counts=True)
    return len(sizes) * int(sizes.max() if sampling == "over" else sizes.min())


@dataclass(frozen=True)
class EpochOrder:
    """The training images of each epoch: pass after pass over them, each pass in a new order.

    An epoch takes the next `len(self)` images of this endless sequence. With `samples_per_epoch=None` an
    epoch is one pass. By natural sampling, a pass visits each image once. By over- and under-sampling it
    visits equally many images of each class: as many as the largest class has, or as the smallest. Each class
    goes through permutations of its own images, one after the other, so that none comes twice as long as
    another has not come.

    Args:
        labels: int64 (N,), of the training images.
        seed: Determines the order.
        samples_per_epoch: Images in an epoch, fewer or more than a pass has; None for one pass.
        sampling: How often the images of each class come.
    """

    labels: np.ndarray = field(repr=False)
    seed: int
    samples_per_epoch: int | None = None
    sampling: Sampling = "natural"

    @property
    def count(self) -> int:
        """The number N of training images."""
        return len(self.labels)

    @cached_property
    def pass_length(self) -> int:
        """The number of images that a pass visits, repeats included."""
        return images_in_pass(self.labels, self.sampling)

    def __len__(self) -> int:
        """Return the number of images n in an epoch."""
        return self.samples_per_epoch or self.pass_length

    def images(self, epoch: int) -> np.ndarray:
        """Return the images of an epoch in the order of their visits, int64 (n,): positions in the split."""
        return self.visits(epoch)[0]

    def visits(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the images of an epoch in order, and how often each has come before: int64 (n,), twice.

        By natural sampling, that is the number of the pass, from 0.
        """
        start, stop = epoch * len(self), (epoch + 1) * len(self)
        length = self.pass_length
        parts = []
        while start < stop:
            number, position = divmod(start, length)
            parts.append([of[position : position + stop - start] for of in self._pass(number)])
            start += len(parts[-1][0])
        images, before = map(np.concatenate, zip(*parts, strict=True))
        return images, before

    def _pass(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, ORDER_STREAM, number])
        if self.sampling == "natural":
            return rng.permutation(self.count), np.full(self.count, number)
        present = np.unique(self.labels)
        each = self.pass_length // len(present)
        drawn = [self._of_class(int(label), number * each, (number + 1) * each) for label in present]
        images, before = map(np.concatenate, zip(*drawn, strict=True))
        order = rng.permutation(len(images))
        return images[order], before[order]

    def _of_class(self, label: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the visits from `start` to `stop` of the endless sequence of a class's permutations."""
        members = np.flatnonzero(self.labels == label)
        rounds = range(start // len(members), -(-stop // len(members)))
        orders = [
            np.random.default_rng([self.seed, CLASS_STREAM, label, one]).permutation(members)
            for one in rounds
        ]
        drawn = slice(start - rounds.start * len(members), stop - rounds.start * len(members))
        return np.concatenate(orders)[drawn], np.repeat(rounds, len(members))[drawn]
