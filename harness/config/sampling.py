"""How a sweep chooses its trials, and when it gives one up."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config.base import Section
from harness.config.schema import PositiveInt


class SamplerConfig(Section):
    """The sampler, which proposes a trial's values.

    gp, cmaes and nsgaii learn only paths that every trial has, and draw conditional ones at random; cmaes
    learns ranges only. grid takes every combination of choices and whole numbers once.
    """

    kind: Literal["tpe", "gp", "cmaes", "qmc", "nsgaii", "random", "grid"] = "tpe"
    seed: Annotated[int, Field(ge=0)] = 0
    startup_trials: PositiveInt = 5  # tpe, gp, cmaes: random trials before the model of the space is trusted
    # cmaes, nsgaii: None = Optuna's; 20 for nsgaii
    population_size: Annotated[int, Field(ge=5)] | None = None


class PrunerConfig(Section):
    """When a trial that is behind is ended early; compared epoch by epoch, by the sweep's metric."""

    kind: Literal["none", "median", "hyperband", "successive_halving"] = "median"
    startup_trials: Annotated[int, Field(ge=0)] = 4  # median: trials that always run to their end
    warmup_epochs: Annotated[int, Field(ge=0)] = 1  # median: epochs before which nothing is pruned
    min_epochs: PositiveInt = 1  # hyperband, successive_halving: the smallest rung
    reduction_factor: Annotated[int, Field(ge=2)] = 3  # hyperband, successive_halving
    # All kinds: prune a trial only if its score has not improved for so many epochs. With kind=none, that
    # alone decides.
    patience_epochs: PositiveInt | None = None
