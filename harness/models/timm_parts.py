"""What training takes from timm beside networks: optimisers, clipping, a loss, gradient checkpointing.

The modules of `harness.training` call these functions; timm is imported in `harness.models` alone.
"""

from __future__ import annotations

from typing import Any

from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import adaptive_clip_grad
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.config.optim import TimmOptim
from harness.errors import ConfigError, ModelError, first_line
from harness.models.protocol import head_names


def timm_optimizer(optim: TimmOptim, groups: list[dict[str, Any]]) -> Optimizer:
    """Return timm's optimiser for groups of parameters with rates and weight decays of their own.

    Raises:
        ConfigError: it rejects the arguments.
    """
    further: dict[str, Any] = dict(optim.args)
    try:
        return create_optimizer_v2(
            groups, opt=optim.name, lr=optim.lr, weight_decay=optim.weight_decay, **further
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"timm's optimiser {optim.name} rejects optim.args={optim.args}: {first_line(error)}"
        ) from error


def clip_adaptively(network: nn.Module, factor: float) -> None:
    """Bound the gradient of each row of weights by `factor` × the row's norm; the head's stays as it is.

    Source: https://arxiv.org/abs/2102.06171, which leaves the last layer out.
    """
    in_head = head_names(network)
    below = [parameter for name, parameter in network.named_parameters() if name not in in_head]
    adaptive_clip_grad(below, clip_factor=factor)


def one_vs_rest(logits_BK: Tensor, targets_BK: Tensor, threshold: float | None) -> Tensor:
    """Return the binary cross entropy of each image and class, (B, K).

    Args:
        threshold: targets above it become 1, others 0; None: they stay as they are.
    """
    loss = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold, reduction="none")
    found: Tensor = loss(logits_BK, targets_BK)
    return found


def recompute_activations(network: nn.Module, kind: str) -> None:
    """Let the network keep few activations for its backward pass, and compute the others again.

    Source: https://arxiv.org/abs/1604.06174 (gradient checkpointing)

    Args:
        kind: the model's name, for messages.

    Raises:
        ModelError: the network cannot do so.
    """
    cannot = ModelError(
        f"{kind} cannot compute its activations again: set trainer.gradient_checkpointing=false, or take "
        "one of timm's models that can, such as its ResNets, EfficientNets and ViTs"
    )
    switch = getattr(network, "set_grad_checkpointing", None)
    if switch is None:
        raise cannot
    try:
        switch(True)
    except (AssertionError, NotImplementedError):  # timm's way to say that a network cannot
        raise cannot from None
