"""What training takes from timm beside networks: optimisers by name, adaptive clipping.

`harness.training.optim` and `harness.training.module` call this; timm is imported in `harness.models` alone.
"""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2
from timm.utils import adaptive_clip_grad
from torch import nn
from torch.optim import Optimizer

from harness.config.optim import TimmOptim
from harness.errors import ConfigError, first_line
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
