"""A step of a small network over two processes, and what one process makes of the same batch."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from harness.models.sync_norm import synchronise_norms
from harness.training.devices import launch_ranks
from harness.training.devices.collectives import current_ranks

BATCH = 11  # of which the ranks take 5 and 6


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), BatchNormAct2d(8), nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5, affine=False),
    )  # fmt: skip


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 3, 12, 12, generator=generator), torch.arange(BATCH) % 5


def tensors_after_a_step(model: nn.Module) -> dict[str, Tensor]:
    """Return gradients and running statistics."""
    gradients = {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**gradients, **dict(model.named_buffers())}


def start_ranks(path: Path, synchronised: bool) -> None:
    raise SystemExit(launch_ranks.launch(_step, 2, path, synchronised))


def _step(path: Path, synchronised: bool) -> int:
    torch.set_num_threads(1)
    ranks, model, (images, labels) = current_ranks(), network(), batch()
    shard = ranks.shard(BATCH)
    if synchronised:
        synchronise_norms(model, torch.device("cpu"))
    together = DistributedDataParallel(model, forward_sync_buffers=False)
    loss = F.cross_entropy(together(images[shard.rows]), labels[shard.rows])
    (loss * shard.weight).backward()
    if ranks.is_zero:
        path.write_bytes(pickle.dumps(tensors_after_a_step(model)))
    return 0
