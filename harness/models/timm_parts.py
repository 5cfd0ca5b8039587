"""What training takes from timm beside networks: optimisers by name.

`harness.training.optim` calls this; timm is imported in `harness.models` alone.
"""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2
from torch.optim import Optimizer

from harness.config.optim import TimmOptim
from harness.errors import ConfigError, first_line


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
