"""How a sweep chooses its trials, and when it gives one up."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config.schema import Frozen, PositiveInt


class SamplerConfig(Frozen):
    kind: Literal["tpe", "random"] = "tpe"
    seed: Annotated[int, Field(ge=0)] = 0
    startup_trials: PositiveInt = 5  # tpe: random trials before the model of the space is trusted


class PrunerConfig(Frozen):
    """When a trial that is behind is ended early; compared epoch by epoch."""

    kind: Literal["none", "median", "hyperband"] = "median"
    startup_trials: Annotated[int, Field(ge=0)] = 4  # median: trials that always run to their end
    warmup_epochs: Annotated[int, Field(ge=0)] = 1  # median: epochs before which nothing is pruned
    min_epochs: PositiveInt = 1  # hyperband: the smallest rung
    reduction_factor: Annotated[int, Field(ge=2)] = 3  # hyperband
