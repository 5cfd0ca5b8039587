"""Builds the sampler that proposes a trial's values; each trial's process builds its own.

A sampler learns from the trials in the database, so one process continues what another has begun. To add a
kind of sampler, name it in `harness/config/sampling.py` and build it in `build_sampler`.
"""

from __future__ import annotations

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from harness.config.space import Choice, Dimension, FloatRange, grid_points
from harness.config.sweep import SweepConfig
from harness.search.database.optuna_private import QmcSamplerAt, enqueued_point

NSGAII_POPULATION = 20  # Optuna's own 50 is more than most sweeps have trials


def build_sampler(sweep: SweepConfig, study: optuna.Study, number: int) -> BaseSampler:  # noqa: PLR0911 - one for each kind
    """Return the sampler of one trial, seeded from the sweep's seed and the trial's number.

    Each trial has its own process, so trials cannot share a random generator; with one seed they would all
    draw the same values. Samplers with a fixed order (qmc, grid) take their position in it from the trial's
    number, so no two trials get the same point.
    """
    config = sweep.sampler
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    match config.kind:
        case "random":
            return RandomSampler(seed=seed)
        case "tpe":
            return TPESampler(
                n_startup_trials=config.startup_trials,
                multivariate=True,
                group=True,  # parameters that occur together in trials are modelled together
                constant_liar=True,  # running trials count as poor, so that others try something else
                seed=seed,
            )
        case "gp":
            return GPSampler(
                n_startup_trials=config.startup_trials, seed=seed, warn_independent_sampling=False
            )
        case "cmaes":
            return _CmaEs(sweep, seed)
        case "nsgaii":
            return NSGAIISampler(population_size=config.population_size or NSGAII_POPULATION, seed=seed)
        case "qmc":
            return _Qmc(sweep, _position(study, number))
        case "grid":
            return _build_grid(sweep, study, number, seed)


def distribution_of(dimension: Dimension) -> BaseDistribution:
    """Return a dimension of the space as an Optuna distribution."""
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    kind = FloatDistribution if isinstance(dimension, FloatRange) else IntDistribution
    return kind(dimension.low, dimension.high, log=dimension.log)  # type: ignore[arg-type]


def _position(study: optuna.Study, number: int) -> int:
    """Return how many earlier trials were not enqueued: this trial's index in a sequence or grid."""
    trials = study.get_trials(deepcopy=False)[:number]
    return sum(not enqueued_point(trial) for trial in trials)


class _CmaEs(CmaEsSampler):
    """CMA-ES over the ranges that every trial has, which are those without a condition.

    Optuna takes the ranges from the trials so far. If a conditional range were among them, the number of
    ranges could change with later trials, and Optuna would sample at random from then on.
    """

    def __init__(self, sweep: SweepConfig, seed: int) -> None:
        super().__init__(
            n_startup_trials=sweep.sampler.startup_trials,
            popsize=sweep.sampler.population_size,
            warn_independent_sampling=False,
            seed=seed,
            # With these pruners most trials never complete (and with others, Optuna advises against it).
            consider_pruned_trials=sweep.pruner.kind in ("hyperband", "successive_halving"),
        )
        self._ranges = {path: distribution_of(range_) for path, range_ in sweep.common_ranges().items()}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._ranges


class _Qmc(QmcSamplerAt):
    """A scrambled Sobol sequence over all dimensions; values whose dimension does not apply are not used."""

    def __init__(self, sweep: SweepConfig, position: int) -> None:
        super().__init__(position, seed=sweep.sampler.seed)  # all trials share one sequence, so one seed
        self._space_of_all = {path: distribution_of(dimension) for path, dimension in sweep.space.items()}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space_of_all


def _build_grid(sweep: SweepConfig, study: optuna.Study, number: int, seed: int) -> BaseSampler:
    """Return a sampler that proposes this trial's point of the grid, whose points are shuffled.

    Optuna's GridSampler knows no conditional parameters, and its BruteForceSampler may give two processes the
    same point.
    """
    random = RandomSampler(seed=seed)
    if enqueued_point(study.get_trials(deepcopy=False)[number]):
        return random  # an enqueued point, which need not lie on the grid
    points = grid_points(sweep.space)
    order = np.random.default_rng(sweep.sampler.seed).permutation(len(points))
    return PartialFixedSampler(points[order[_position(study, number)]], random)
