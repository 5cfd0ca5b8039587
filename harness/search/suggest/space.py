"""Suggests one trial's values from the configured space, and checks the space before a sweep starts.

A trial's process calls `suggest`, then `SweepPlan.compose_trial`; `harness sweep` calls `check_space` first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from harness.config.compose import TRIAL_OVERRIDES, SweepPlan
from harness.config.schema import RunConfig
from harness.config.space import Choice, Dimension, FloatRange, Scalar, as_yaml, holds
from harness.config.sweep import SweepConfig
from harness.errors import ConfigError

MAX_CORNERS = 64  # combinations of the space's extremes that are validated before anything starts


class Suggester(Protocol):
    """The methods of an Optuna trial that `suggest` uses."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


def suggest(trial: Suggester, space: Mapping[str, Dimension]) -> dict[str, Scalar]:
    """Return the trial's value for each dimension whose condition holds, asked for in the space's order."""
    chosen: dict[str, Scalar] = {}
    for path, dimension in space.items():
        if not holds(dimension.when, chosen):
            continue
        if isinstance(dimension, Choice):
            chosen[path] = trial.suggest_categorical(path, dimension.values)
        elif isinstance(dimension, FloatRange):
            chosen[path] = trial.suggest_float(path, dimension.low, dimension.high, log=dimension.log)
        else:
            chosen[path] = trial.suggest_int(path, dimension.low, dimension.high, log=dimension.log)
    return chosen


class CheckedSpace(NamedTuple):
    """A plan with its arms composed, and one run of every arm.

    Args:
        runs: the overrides that make an arm, such as `finetune=partial` -> a run of that arm.
    """

    plan: SweepPlan
    runs: dict[str, RunConfig]


def check_space(plan: SweepPlan) -> CheckedSpace:
    """Make sure that the corners of the space (its first `MAX_CORNERS`) are valid runs.

    Returns:
        The plan with the arms of these corners composed, so that no trial of these arms waits for Hydra.

    Raises:
        ConfigError: the space has a key that no run has, a value that is not valid, or one that needs a
            package which is not installed.
    """
    runs: dict[str, RunConfig] = {}
    for chosen in itertools.islice(corners(plan.sweep), MAX_CORNERS):
        try:
            plan = plan.with_arm_of(chosen)
            config = plan.compose_trial(chosen)
            config.finetune.check_installed()
        except ConfigError as error:
            where = ", ".join(f"{path}={as_yaml(value)}" for path, value in chosen.items())
            raise ConfigError(f"the space reaches a run that cannot be ({where}): {error}") from error
        arm = " ".join(text for text in plan.arm_of(chosen) if text not in TRIAL_OVERRIDES)
        runs.setdefault(arm, config)
    return CheckedSpace(plan, runs)


def corner_runs(plan: SweepPlan) -> dict[str, list[RunConfig]]:
    """Return the runs at the corners of the space (its first `MAX_CORNERS`), by the names of their arms.

    Raises:
        ConfigError: a corner is no valid run.
    """
    runs: dict[str, list[RunConfig]] = {}
    for chosen in itertools.islice(corners(plan.sweep), MAX_CORNERS):
        runs.setdefault(arm_name(chosen), []).append(plan.compose_trial(chosen))
    return runs


def arm_name(chosen: Mapping[str, Any]) -> str:
    """Return the name of a trial's arm: its files of the searched groups, such as `partial`."""
    files = (value for path, value in chosen.items() if "." not in path and isinstance(value, str))
    return " ".join(files) or "every trial"


def corners(sweep: SweepConfig) -> Iterator[dict[str, Scalar]]:
    """Yield every combination of choices, each with all ranges at their low and then at their high end."""
    choices = [d.values if isinstance(d, Choice) else [None] for d in sweep.space.values()]
    for values, end in itertools.product(itertools.product(*choices), ("low", "high")):
        chosen: dict[str, Scalar] = {}
        for (path, dimension), value in zip(sweep.space.items(), values, strict=True):
            if holds(dimension.when, chosen):
                chosen[path] = value if isinstance(dimension, Choice) else getattr(dimension, end)
        yield chosen


def describe_dimension(dimension: Dimension) -> str:
    """Return a dimension in words: `0.0003 to 0.01 (log)`, `1 to 3, where finetune=partial`."""
    if isinstance(dimension, Choice):
        text = " | ".join(as_yaml(value) for value in dimension.values)
    else:
        text = f"{dimension.low:g} to {dimension.high:g}" + (" (log)" if dimension.log else "")
    conditions = ", ".join(f"{path}={values}" for path, values in dimension.when.items())
    return text + (f", where {conditions}" if conditions else "")
