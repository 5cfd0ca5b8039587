"""The space of a sweep: dimensions over dotted configuration paths, and conditions on their values.

A dimension with `when` exists only in trials whose other values fulfil that condition; a rule adds overrides
to such trials. `harness.search.suggest` draws from the space.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, Field, field_validator, model_validator

from harness.config.base import Section
from harness.errors import did_you_mean

Scalar = bool | int | float | str | None  # None where a setting may be off, such as optim.clip_grad_norm
Range = TypeVar("Range", bound=BaseModel)
Condition = dict[str, Scalar | list[Scalar]]  # path or group -> the value(s) chosen for it
MAX_GRID_POINTS = 10_000


def as_yaml(value: Scalar) -> str:
    """Return a value as it is written in a file."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def holds(condition: Condition, chosen: dict[str, Scalar]) -> bool:
    """Return whether each key of the condition was chosen with one of the values that it names."""
    return all(
        path in chosen and chosen[path] in (values if isinstance(values, list) else [values])
        for path, values in condition.items()
    )


class FloatRange(Section):
    type: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False
    when: Condition = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _check_range(self, self.low, self.high, self.log)


class IntRange(Section):
    type: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False
    when: Condition = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _check_range(self, self.low, self.high, self.log)


class Choice(Section):
    """One of several values; where the path is a config group, the values are its files."""

    type: Literal["choice"] = "choice"
    values: Annotated[list[Scalar], Field(min_length=1)]
    when: Condition = Field(default_factory=dict)

    @field_validator("values")
    @classmethod
    def _different(cls, values: list[Scalar]) -> list[Scalar]:
        for index, value in enumerate(values):
            if value in values[:index]:
                first = values[values.index(value)]
                if type(value) is type(first):
                    raise ValueError(f"{as_yaml(value)} stands among the values twice: list it once")
                raise ValueError(
                    f"{as_yaml(first)} and {as_yaml(value)} are one value to a sampler: list one of them"
                )
        return values


def _check_range(dimension: Range, low: float, high: float, log: bool) -> Range:
    if not low < high:
        raise ValueError(f"low={low:g} must be below high={high:g}")
    if log and low <= 0:
        raise ValueError(f"log=true needs low above 0, not {low:g}")
    return dimension


Dimension = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]


def grid_points(space: Mapping[str, Dimension]) -> list[dict[str, Scalar]]:
    """Return every different combination of values in a space of choices and whole numbers.

    A combination leaves out the dimensions whose condition does not hold in it.

    Raises:
        ValueError: the space has a continuous dimension, or too many points to count.
    """
    points: list[dict[str, Scalar]] = [{}]
    for path, dimension in space.items():
        points = [{**point, **chosen} for point in points for chosen in _choices(path, dimension, point)]
        if len(points) > MAX_GRID_POINTS:
            raise ValueError(
                f"the grid has more than {MAX_GRID_POINTS:,} points: choose another sampler.kind"
            )
    return points


def _choices(path: str, dimension: Dimension, point: dict[str, Scalar]) -> list[dict[str, Scalar]]:
    if not holds(dimension.when, point):
        return [{}]
    if isinstance(dimension, FloatRange):
        raise ValueError(f"sampler.kind=grid cannot try every value of {path}: list some (type: choice)")
    values = dimension.values if isinstance(dimension, Choice) else range(dimension.low, dimension.high + 1)
    return [{path: value} for value in values]


def check_point(space: Mapping[str, Dimension], point: dict[str, Scalar]) -> None:
    """Make sure that the space has a trial with these values; the sampler chooses those that are left out.

    Raises:
        ValueError: a key, a value or a combination that the space does not have.
    """
    for path, value in point.items():
        if path not in space:
            raise ValueError(f"{path!r} is not in the space{did_you_mean(path, space)}")
        dimension = space[path]
        if not _contains(dimension, value):
            raise ValueError(f"{path}={as_yaml(value)} is outside of the space{nearest(dimension, value)}")
        if not holds(dimension.when, point):
            needed = ", ".join(f"{name}={values}" for name, values in dimension.when.items())
            raise ValueError(f"{path} is there only where {needed}: the point must say so too")


def _contains(dimension: Dimension, value: Scalar) -> bool:
    if isinstance(dimension, Choice):
        return any(value == known and type(value) is type(known) for known in dimension.values)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    is_of_kind = isinstance(dimension, FloatRange) or isinstance(value, int)
    return is_of_kind and dimension.low <= value <= dimension.high


def nearest(dimension: Dimension, value: Scalar) -> str:
    """Return a hint for an error message: the nearest value of a dimension, or its values or range."""
    if isinstance(dimension, Choice):
        words = [known for known in dimension.values if isinstance(known, str)]
        if isinstance(value, str) and len(words) == len(dimension.values):
            return did_you_mean(value, words)
        return f": its values are {', '.join(as_yaml(known) for known in dimension.values)}"
    kind = "a whole number" if isinstance(dimension, IntRange) else "a number"
    return f": it is {kind} from {dimension.low:g} to {dimension.high:g}"


class Rule(Section):
    """Overrides for the trials that fulfil `when`, such as fewer epochs for an expensive model."""

    when: Condition  # empty = always
    overrides: Annotated[list[str], Field(min_length=1)]


class SearchSpace(Section):
    """The part of a sweep's section that changes if the command line fixes a searched key.

    If every setting is fixed, the space is empty and the sweep is one trial.
    """

    space: dict[str, Dimension]
    rules: list[Rule] = Field(default_factory=list)
    # Points to try first, key -> value; the sampler chooses what a point leaves out. They count as trials.
    enqueue: list[dict[str, Scalar]] = Field(default_factory=list)


def check_conditions(
    space: Mapping[str, Dimension], rules: Sequence[Rule], fixed: Container[str] = ()
) -> None:
    """Refuse a condition that can never hold: its dimension or rule would silently never apply.

    Args:
        fixed: keys that have one value for all trials; `without_fixed` decides the conditions on them.

    Raises:
        ValueError: a condition on a key that is not searched, or on a value that the key cannot take.
    """
    seen: list[str] = []
    for path, dimension in space.items():
        if late := [name for name in dimension.when if name not in seen and name not in fixed]:
            near = did_you_mean(late[0], seen) if late[0] not in space else ""
            raise ValueError(
                f"space {path!r} depends on {late[0]!r}, which must stand above it in the space{near}"
            )
        _check_can_hold(f"space {path!r}", dimension.when, space)
        seen.append(path)
    for rule in rules:
        if unknown := [name for name in rule.when if name not in space and name not in fixed]:
            near = did_you_mean(unknown[0], space)
            raise ValueError(f"a rule depends on {unknown[0]!r}, which the space does not have{near}")
        _check_can_hold(f"the rule {', '.join(rule.overrides)}", rule.when, space)


def _check_can_hold(subject: str, when: Condition, space: Mapping[str, Dimension]) -> None:
    """Check a condition together with the conditions of the dimensions that it names, and so on."""
    possible: dict[str, list[Scalar]] = {}
    for path, values in _demands(when, space):
        given = values if isinstance(values, list) else [values]
        dimension = space.get(path)
        if isinstance(dimension, FloatRange):
            raise ValueError(
                f"{subject} depends on one value of {path}, a range of numbers: that never holds"
            )
        for value in given:
            if dimension is not None and not _contains(dimension, value):
                hint = nearest(dimension, value)
                raise ValueError(f"{subject} depends on {path}={as_yaml(value)}, which can never hold{hint}")
        possible[path] = [value for value in possible.get(path, given) if value in given]
        if not possible[path]:
            raise ValueError(f"{subject} can never hold: no value of {path} suits all that it depends on")


def _demands(when: Condition, space: Mapping[str, Dimension]) -> Iterator[tuple[str, Scalar | list[Scalar]]]:
    for path, values in when.items():
        yield path, values
        if path in space:
            yield from _demands(space[path].when, space)
