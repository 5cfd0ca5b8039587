"""From a space over dotted configuration paths to the overrides of one trial."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from harness.config.compose import SweepPlan
from harness.config.overrides import as_override_value, path_of
from harness.config.schema import RunConfig
from harness.config.space import Choice, Dimension, FloatRange, Rule, Scalar, as_yaml, holds
from harness.config.sweep import SweepConfig
from harness.errors import ConfigError

MAX_CORNERS = 64  # combinations of the space's extremes that are validated before anything starts
FIXED_OVERRIDES = ("evaluate_test=false",)  # selection sees validation only


class Suggester(Protocol):
    """What a space asks of an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


def suggest(trial: Suggester, space: Mapping[str, Dimension]) -> dict[str, Scalar]:
    """Return the trial's value for every path whose condition holds, asked for in the order of the space."""
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


def trial_overrides(plan: SweepPlan, chosen: Mapping[str, Scalar]) -> list[str]:
    """Return a trial's overrides: what was chosen, then the rules that hold for it.

    What the user fixed on the command line is not overruled by a rule.
    """
    fixed = {path_of(text) for text in plan.overrides}
    return [
        *(f"{path}={as_override_value(value)}" for path, value in chosen.items()),
        *_rule_overrides(plan.sweep.rules, dict(chosen), fixed),
        *FIXED_OVERRIDES,
    ]


def _rule_overrides(rules: Sequence[Rule], chosen: dict[str, Scalar], fixed: set[str]) -> list[str]:
    texts = [text for rule in rules if holds(rule.when, chosen) for text in rule.overrides]
    return [text for text in texts if path_of(text) not in fixed]


def check_space(plan: SweepPlan) -> dict[str, RunConfig]:
    """Make sure that the corners of the space are valid runs, before anything is started.

    Every arm (groups and rules) is composed on the way, and the plan keeps it for the trials.

    Returns:
        One run of every arm by what makes the arm, such as `finetune=partial`.

    Raises:
        ConfigError: a path that no run has, or a value that no run may have.
    """
    arms: dict[str, RunConfig] = {}
    for chosen in itertools.islice(corners(plan.sweep), MAX_CORNERS):
        overrides = trial_overrides(plan, chosen)
        makes_arm, _ = plan.split_overrides(overrides)
        try:
            config = plan.compose_trial(overrides)
        except ConfigError as error:
            where = ", ".join(f"{path}={as_yaml(value)}" for path, value in chosen.items())
            raise ConfigError(f"the space reaches a run that cannot be ({where}): {error}") from error
        arms.setdefault(" ".join(text for text in makes_arm if text not in FIXED_OVERRIDES), config)
    return arms


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
    """Return a dimension for people: `0.0003 to 0.01 (log)`, `1 to 3, where finetune=partial`."""
    if isinstance(dimension, Choice):
        text = " | ".join(as_yaml(value) for value in dimension.values)
    else:
        text = f"{dimension.low:g} to {dimension.high:g}" + (" (log)" if dimension.log else "")
    conditions = ", ".join(f"{path}={values}" for path, values in dimension.when.items())
    return text + (f", where {conditions}" if conditions else "")
