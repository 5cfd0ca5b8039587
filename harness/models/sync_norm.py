"""Batch norm with statistics of the whole batch, although each rank computes only a part (shard) of it.

`harness.training.train` calls `synchronise_norms` if `trainer.sync_batchnorm` is set; without it
`harness.training.module` averages the ranks' `running_statistics` once an epoch. On GPUs torch's
SyncBatchNorm does the work. It has no CPU kernels, so on a CPU `SyncedBatchNorm` computes the same: it is
slow, and meant for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.models.protocol import replace_modules


def synchronise_norms(network: nn.Module, device: torch.device) -> None:
    """Replace every batch norm by one that takes its statistics from all ranks; parameters and names stay."""
    if device.type == "cuda":
        convert_sync_batchnorm(network)
    else:
        replace_modules(network, _synchronised)


def running_statistics(norms: Sequence[nn.Module]) -> list[Tensor]:
    """Return the running means and variances of batch norms."""
    found = (getattr(norm, name) for norm in norms for name in ("running_mean", "running_var"))
    return [tensor for tensor in found if tensor is not None]


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """Return the modules that keep running statistics of batches."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def learning_norms(network: nn.Module) -> list[nn.Module]:
    """Return the batch norms that update their running statistics, from a network in training mode.

    Frozen batch norms are left out: they are in eval mode even then.
    """
    return [norm for norm in batch_norms(network) if norm.training]


PausedNorm = tuple[Any, float | None, Tensor | None]  # a batch norm, its momentum, its number of batches


def pause_tracking(norms: Sequence[nn.Module]) -> list[PausedNorm]:
    """Let batch norms in training mode keep their running statistics, until `resume_tracking`.

    They compute and save for the backward pass what they always do, as a momentum of 0 changes nothing else.
    """
    paused: list[PausedNorm] = []
    for norm in norms:
        held: Any = norm
        count = held.num_batches_tracked
        paused.append((held, held.momentum, None if count is None else count.clone()))
        held.momentum = 0.0
    return paused


def resume_tracking(paused: Sequence[PausedNorm]) -> None:
    """Undo `pause_tracking`."""
    for norm, momentum, count in paused:
        norm.momentum = momentum
        if count is not None:
            norm.num_batches_tracked.copy_(count)


class SyncedBatchNorm(_BatchNorm):
    """A synchronised batch norm for inputs of any number of dimensions."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = _normalise(self, inputs) if self.training else super().forward(inputs)
        # timm's BatchNormAct2d has these two submodules; torch's own batch norms have not.
        for name in ("drop", "act"):
            outputs = getattr(self, name, nn.Identity())(outputs)
        return outputs

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions."""


def _synchronised(norm: nn.Module) -> nn.Module | None:
    if not isinstance(norm, _BatchNorm):
        return None
    other = SyncedBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    for name, tensor in [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)]:
        setattr(other, name, tensor)
    for name, child in norm.named_children():
        other.add_module(name, child)
    return other


def _normalise(norm: Any, inputs: Tensor) -> Tensor:
    values = inputs.float()
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    shape = [1, -1] + [1] * (inputs.ndim - 2)
    # Two passes, mean and then squares of differences: the difference of sums of squares would lose digits.
    own = torch.cat([values.sum(axes), values.new_tensor([inputs.numel() / inputs.shape[1]])])
    total = _SumOverRanks.apply(own)
    count = total[-1].detach()
    mean = total[:-1] / count
    centred = values - mean.view(shape)
    variance = _SumOverRanks.apply(centred.square().sum(axes)) / count
    # As in torch, the running variance is the unbiased one.
    _track(norm, mean.detach(), variance.detach() * count / (count - 1))
    outputs = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        outputs = outputs * norm.weight.view(shape) + norm.bias.view(shape)
    return outputs.to(inputs.dtype)


@torch.no_grad()
def _track(norm: Any, mean: Tensor, variance: Tensor) -> None:
    if not norm.track_running_stats:
        return
    norm.num_batches_tracked += 1
    momentum = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance, momentum)


class _SumOverRanks(torch.autograd.Function):
    """A sum over all ranks. Its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        return _summed(gradients)


def _summed(values: Tensor) -> Tensor:
    summed = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed
