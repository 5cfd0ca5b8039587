"""Settings of a sweep's sampler, its pruner, and its replicates: what proposes, ends and repeats trials."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config.base import Section
from harness.config.schema import PositiveInt


class SamplerConfig(Section):
    """The sampler, which proposes a trial's values.

    gp, cmaes and nsgaii learn only dimensions that every trial has, and draw conditional ones at random;
    cmaes learns ranges only. grid proposes every combination of choices and whole numbers once.
    """

    kind: Literal["tpe", "gp", "cmaes", "qmc", "nsgaii", "random", "grid"] = "tpe"
    seed: Annotated[int, Field(ge=0)] = 0
    startup_trials: PositiveInt = 5  # tpe, gp, cmaes: random trials before the sampler uses its model
    # cmaes, nsgaii: None = Optuna's default for cmaes, 20 for nsgaii
    population_size: Annotated[int, Field(ge=5)] | None = None


class PrunerConfig(Section):
    """When a trial is ended early: its score after an epoch is compared with other trials' scores."""

    kind: Literal["none", "median", "hyperband", "successive_halving"] = "median"
    startup_trials: Annotated[int, Field(ge=0)] = 4  # median: none is pruned before so many are complete
    warmup_epochs: Annotated[int, Field(ge=0)] = 1  # median: epochs that every trial may complete
    min_epochs: PositiveInt = 1  # hyperband, successive_halving: epochs before the first comparison
    reduction_factor: Annotated[int, Field(ge=2)] = 3  # hyperband, successive_halving
    # All kinds: prune a trial only if its score has not improved for so many epochs. With kind=none, that
    # alone decides.
    patience_epochs: PositiveInt | None = None


class ReplicateConfig(Section):
    """The best trials are trained again with fresh seeds once the search has ended; `seeds=0`: none are.

    A seed decides initialisation, order of the data and augmentation. Replicates are trials of the sweep,
    beyond `num_trials`: they count towards its minutes, are resumed like the others, and are never pruned.
    """

    top: PositiveInt = 1  # how many of the best configurations
    seeds: Annotated[int, Field(ge=0)] = 0  # fresh ones for each of them; with one there is no interval
    fresh_splits: bool = False  # each seed also draws validation images of its own (data.split_seed)
