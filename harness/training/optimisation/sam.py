"""Sharpness-aware minimisation (SAM): the step of an optimiser takes the gradient of weights nearby.

Those weights lie `rho` up the gradient, where the loss is highest to first order: training so avoids sharp
minima. `module.py` runs a step's batches a second time within `uphill`, whatever the optimiser is. Its own
because other implementations, which wrap the optimiser, fit neither Lightning's closures nor accumulated
batches. Source: Foret et al. (2021), "Sharpness-Aware Minimization for Efficiently Improving
Generalization", https://arxiv.org/abs/2010.01412
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn.utils import get_total_norm


@contextlib.contextmanager
def uphill(parameters: Iterable[nn.Parameter], rho: float) -> Iterator[None]:
    """Move weights by `rho` in the direction of their gradient; at the end put them back as they were.

    A gradient that is not finite, as fp16's scaler sometimes makes one, makes weights that are not finite:
    the second gradient is none either, and the scaler leaves the step out. So nothing waits for the device.

    Args:
        parameters: Those without a gradient stay. Gradients may be scaled: their direction alone counts.
        rho: The length of the move, over all parameters together.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    with torch.no_grad():
        before = [parameter.detach().clone() for parameter in moved]
        scale = rho / (get_total_norm(gradients) + 1e-12)
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.add_(gradient * scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, weights in zip(moved, before, strict=True):
                parameter.copy_(weights)
