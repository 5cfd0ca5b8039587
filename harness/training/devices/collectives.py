"""Collectives between ranks (broadcast, sum, gather, average); no-ops in a single process.

`module.py`, `callbacks.py`, `train.py` and others get their rank from `current_ranks`. `launch_ranks.py`
starts the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from harness.data.sharding import RankInfo
from harness.errors import HarnessError

Value = TypeVar("Value")


class PeerDied(SystemExit):
    """Another rank died. This process exits too: a collective without all ranks never completes."""

    def __init__(self) -> None:
        super().__init__(1)


class Ranks(RankInfo):
    """The ranks that train one model together, seen from one of them. All ranks must call each method."""

    @property
    def is_zero(self) -> bool:
        """Whether this is rank 0, the only one that writes to Optuna's database, MLflow and checkpoints."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.world_size == 1

    def broadcast(self, value: Value) -> Value:
        """Return rank 0's value, any object that pickle takes."""
        if self.is_alone:
            return value
        held = [value]
        with exit_if_peer_died():
            dist.broadcast_object_list(held)
        return held[0]

    def from_zero(self, ask: Callable[[], Value]) -> Value:
        """Call `ask` on rank 0 alone, and return its result on all ranks.

        Raises:
            HarnessError: rank 0's error, on every rank.
        """
        if self.is_alone:
            return ask()
        answer: Any = None
        error: HarnessError | None = None
        if self.is_zero:
            try:
                answer = ask()
            except HarnessError as raised:
                error = raised
        answer, error = self.broadcast((answer, error))
        if error is not None:
            raise error
        return answer

    def any(self, flag: bool) -> bool:
        """Return whether the flag is True on any rank."""
        return flag if self.is_alone else self.sum([float(flag)])[0] > 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all ranks, in double precision."""
        if self.is_alone:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        with exit_if_peer_died():
            dist.all_reduce(summed)
        return summed.tolist()

    def gather(self, rows: list[Tensor]) -> list[Tensor]:
        """Return on rank 0 the tensors of all ranks, ordered by rank, and an empty list on the others.

        The tensors are moved to the CPU, unless there is only one rank.
        """
        if self.is_alone:
            return rows
        found: list[Any] | None = [None] * self.world_size if self.is_zero else None
        with exit_if_peer_died():
            dist.gather_object([part.cpu() for part in rows], found)
        return [part for parts in found or [] for part in parts]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace floating-point tensors by their means over the ranks."""
        if self.is_alone or not tensors:
            return
        # In one collective: a network has a hundred such tensors.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with exit_if_peer_died():
            dist.all_reduce(flat)
        parts = (flat / self.world_size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def current_ranks() -> Ranks:
    """Return the ranks that this process belongs to: itself alone, unless `launch_ranks.py` started it."""
    if not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextmanager
def exit_if_peer_died() -> Iterator[None]:
    """Exit this process when a collective fails because another rank died.

    Raises:
        PeerDied: another rank died.
    """
    try:
        yield
    except RuntimeError as error:
        # Gloo raises plain RuntimeErrors, which name its source files; NCCL's have a type of their own.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise PeerDied from error
        raise
