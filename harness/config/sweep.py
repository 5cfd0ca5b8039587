"""What a sweep is: a space over dotted configuration paths, an objective, a budget."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, Field, model_validator

from harness.config.schema import Frozen, PositiveInt

Scalar = bool | int | float | str
Range = TypeVar("Range", bound=BaseModel)
Condition = dict[str, Scalar | list[Scalar]]  # path or group -> the value(s) chosen for it


def holds(condition: Condition, chosen: dict[str, Scalar]) -> bool:
    """Return whether every path of the condition was chosen as one of its values."""
    return all(
        path in chosen and chosen[path] in (values if isinstance(values, list) else [values])
        for path, values in condition.items()
    )


class FloatRange(Frozen):
    type: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False
    when: Condition = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _check_range(self, self.low, self.high, self.log)


class IntRange(Frozen):
    type: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False
    when: Condition = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _check_range(self, self.low, self.high, self.log)


class Choice(Frozen):
    """One of several values; where the path is a config group, the values are its files."""

    type: Literal["choice"] = "choice"
    values: Annotated[list[Scalar], Field(min_length=1)]
    when: Condition = Field(default_factory=dict)


def _check_range(dimension: Range, low: float, high: float, log: bool) -> Range:
    if not low < high:
        raise ValueError(f"low={low:g} must be below high={high:g}")
    if log and low <= 0:
        raise ValueError(f"log=true needs low above 0, not {low:g}")
    return dimension


Dimension = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]


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


class Rule(Frozen):
    """Overrides that hold for the trials of one arm, such as a bound on an expensive one."""

    when: Condition  # empty = always
    overrides: Annotated[list[str], Field(min_length=1)]


class SweepConfig(Frozen):
    """A space, an objective and a budget; the rest of the sweep's file is the run it starts from."""

    name: str | None = None  # None = <sweep file>-<data set>-<digest of the question>
    metric: Literal["val/accuracy", "val/loss"] = "val/accuracy"
    direction: Literal["maximize", "minimize"] = "maximize"
    num_trials: PositiveInt = 12  # that ended: complete, pruned or failed, over all calls
    max_minutes: Annotated[float, Field(gt=0)] | None = None  # of one call; then running trials stop early
    slots: PositiveInt | Literal["auto"] = "auto"  # trials at a time
    threads_per_trial: PositiveInt | Literal["auto"] = "auto"  # on a CPU: cores ÷ slots
    max_retries: Annotated[int, Field(ge=0)] = 2  # of a trial whose process died
    max_consecutive_failures: PositiveInt = 3  # then the sweep stops and says why
    evaluate_test: bool = True  # the best trial's checkpoint, once, at the end
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    rules: list[Rule] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.metric == "val/loss") != (self.direction == "minimize"):
            raise ValueError(f"direction={self.direction} does not suit metric={self.metric}")
        seen: list[str] = []
        for path, dimension in self.space.items():
            if late := [name for name in dimension.when if name not in seen]:
                raise ValueError(
                    f"space {path!r} depends on {late[0]!r}, which must stand above it in the space"
                )
            seen.append(path)
        for rule in self.rules:
            if unknown := [name for name in rule.when if name not in self.space]:
                raise ValueError(f"a rule depends on {unknown[0]!r}, which the space does not have")
        return self

    def num_grid_points(self) -> float:
        """Return how many different trials the space holds (inf if it has a continuous dimension)."""
        sizes = [len(d.values) if isinstance(d, Choice) else math.inf for d in self.space.values()]
        return math.prod(sizes)
