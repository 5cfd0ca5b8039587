"""The space of a sweep: dimensions over dotted configuration paths, and what hangs on their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, field_validator, model_validator

from harness.config.schema import Frozen
from harness.errors import did_you_mean

Scalar = bool | int | float | str
Range = TypeVar("Range", bound=BaseModel)
Condition = dict[str, Scalar | list[Scalar]]  # path or group -> the value(s) chosen for it
MAX_GRID_POINTS = 10_000


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

    @field_validator("values")
    @classmethod
    def _different(cls, values: list[Scalar]) -> list[Scalar]:
        for index, value in enumerate(values):
            if value in values[:index]:
                first = values[values.index(value)]
                if type(value) is type(first):
                    raise ValueError(f"{value} stands among the values twice: list it once")
                raise ValueError(f"{first} and {value} are one value to a sampler: list one of them")
        return values


def _check_range(dimension: Range, low: float, high: float, log: bool) -> Range:
    if not low < high:
        raise ValueError(f"low={low:g} must be below high={high:g}")
    if log and low <= 0:
        raise ValueError(f"log=true needs low above 0, not {low:g}")
    return dimension


Dimension = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]


def grid_points(space: Mapping[str, Dimension]) -> list[dict[str, Scalar]]:
    """Return every different trial of a space of choices and whole numbers, without what does not apply.

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
    """Make sure that a trial could be asked for with these values; the paths left out are anybody's choice.

    Raises:
        ValueError: a path, a value or a combination that the space does not have.
    """
    for path, value in point.items():
        if path not in space:
            raise ValueError(f"{path!r} is not in the space{did_you_mean(path, space)}")
        dimension = space[path]
        if not _contains(dimension, value):
            raise ValueError(f"{path}={value} is outside of the space")
        if not holds(dimension.when, point):
            needed = ", ".join(f"{name}={values}" for name, values in dimension.when.items())
            raise ValueError(f"{path} is there only where {needed}: the point must say so too")


def _contains(dimension: Dimension, value: Scalar) -> bool:
    if isinstance(dimension, Choice):
        return any(value == known and type(value) is type(known) for known in dimension.values)
    is_number = isinstance(value, int | (float if isinstance(dimension, FloatRange) else int))
    return is_number and not isinstance(value, bool) and dimension.low <= float(value) <= dimension.high


class Rule(Frozen):
    """Overrides that hold for the trials of one arm, such as a bound on an expensive one."""

    when: Condition  # empty = always
    overrides: Annotated[list[str], Field(min_length=1)]


def without_fixed(section: dict[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Take what the user fixed out of a sweep's space, and settle what hangs on it: conditions, points."""
    space = {path: d for path, d in section.get("space", {}).items() if path not in fixed}
    return {
        **section,
        "space": {path: kept for path, d in space.items() if (kept := _settle(d, fixed)) is not None},
        "rules": [kept for rule in section.get("rules", []) if (kept := _settle(rule, fixed)) is not None],
        "enqueue": [
            {path: value for path, value in point.items() if path not in fixed}
            for point in section.get("enqueue", [])
            if all(fixed.get(path, value) == value for path, value in point.items())
        ],
    }


def _settle(conditional: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any] | None:
    """Drop from `when` what is now certain; None if it can no longer hold."""
    when = conditional.get("when", {})
    certain = {path: values for path, values in when.items() if path in fixed}
    if not holds(certain, dict(fixed)):
        return None
    return {**conditional, "when": {path: v for path, v in when.items() if path not in fixed}}
