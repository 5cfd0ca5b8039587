"""What processes that train one model together tell each other; a single process says nothing to itself."""

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
    """Another rank is gone in the middle of something: this process can only leave, to be started again."""

    def __init__(self) -> None:
        super().__init__(1)


class Ranks(RankInfo):
    """The processes that train together, seen from one of them. Each method but `rank` is called by all."""

    @property
    def is_zero(self) -> bool:
        """Whether this is the process that speaks to Optuna and MLflow and writes checkpoints."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.world_size == 1

    def broadcast(self, value: Value) -> Value:
        """Return rank 0's value, any plain object."""
        if self.is_alone:
            return value
        held = [value]
        with exit_if_peer_died():
            dist.broadcast_object_list(held)
        return held[0]

    def from_zero(self, ask: Callable[[], Value]) -> Value:
        """Have rank 0 alone do something, and return what it returned.

        Raises:
            HarnessError: rank 0's, on every rank.
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
        """Return whether the flag is up on any rank."""
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
        """Return the tensors of all ranks, in their order and on the CPU, to rank 0; to the others none."""
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
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with exit_if_peer_died():
            dist.all_reduce(flat)
        parts = (flat / self.world_size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def current_ranks() -> Ranks:
    """Return this process as one of its ranks; the only one, unless `launch_ranks.py` started it."""
    if not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextmanager
def exit_if_peer_died() -> Iterator[None]:
    """Turn what torch raises when another rank has gone into our own leaving.

    Raises:
        PeerDied: another rank has gone.
    """
    try:
        yield
    except RuntimeError as error:
        # Gloo raises plain RuntimeErrors, which name its source files; NCCL's have a type of their own.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise PeerDied from error
        raise
