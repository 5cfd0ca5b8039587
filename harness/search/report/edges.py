"""Finds out whether the best trial of a sweep lies at the edge of a range; `audit.py` calls `find_edges`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from harness.config.compose import SweepPlan
from harness.config.space import Choice, Dimension, IntRange, Scalar, as_yaml
from harness.errors import HarnessError, first_few
from harness.search.report.findings import EndedSweep, Finding
from harness.search.report.progress import format_value
from harness.search.study.trials import TrialRow
from harness.search.suggest.space import describe_dimension

EDGE = 0.05  # a winner within this share of its range (of its logarithm, with log: true) is at the edge
FACTOR = 3.0  # by which a logarithmic range is widened
NUM_CLASSES = 10  # of the model that is tried; how many there are does not matter


def find_edges(sweep: EndedSweep) -> Iterator[Finding]:
    """Find the ranges at whose edge the best trial lies: one finding, as one `--extend` widens them all."""
    space, best = sweep.plan.sweep.space, sweep.best
    if best is None:
        return
    at_edge = {
        path: end
        for path, value in best.params.items()
        if path in space and path != "seed" and (end := edge_of(space[path], value)) is not None
    }
    if not at_edge:
        return
    changes: dict[str, str] = {}
    said = []
    for path, end in at_edge.items():
        wider = _widened(sweep.plan, best, path, end)
        if wider is not None:
            changes |= {f"sweep.space.{path}.{key}": value for key, value in wider.items()}
        place = (
            f"{path}={format_value(best.params[path])} (the {end} end of {describe_dimension(space[path])}"
        )
        said.append(place + _others_within(sweep, path, end) + (")" if wider else "; it can go no further)"))
    ranges = f"{len(said)} ranges" if len(said) > 1 else "a range"
    beyond = ": better values may lie beyond" if changes else ""
    command = None
    if changes and sweep.plan.sweep.sampler.kind == "grid":  # whose order would change
        command = sweep.other("wider", changes)
    elif changes:
        command = sweep.with_more_trials(sweep.some_more, changes, "--extend")
    yield Finding(
        "edge",
        f"trial {best.number}, the best, is at the edge of {ranges}{beyond}: {', '.join(said)}",
        command,
    )


def edge_of(dimension: Dimension, value: Any) -> Literal["lower", "upper"] | None:
    """Return at which end of its range a value lies; None: within, or the values have no order."""
    if isinstance(dimension, Choice):
        numbers = _numbers(dimension)
        if len(numbers) < 2 or value not in numbers:
            return None
        return "lower" if value == numbers[0] else "upper" if value == numbers[-1] else None
    if not isinstance(value, int | float):
        return None
    scale = math.log if dimension.log else float
    low, high = scale(dimension.low), scale(dimension.high)
    place = (scale(value) - low) / (high - low)
    return "lower" if place <= EDGE else "upper" if place >= 1 - EDGE else None


def _numbers(dimension: Choice) -> list[int | float]:
    """Return the values of a choice in their order if all are numbers, otherwise none."""
    values = [v for v in dimension.values if isinstance(v, int | float) and not isinstance(v, bool)]
    return sorted(values) if len(values) == len(dimension.values) else []


def _others_within(sweep: EndedSweep, path: str, end: str) -> str:
    """Name the trials that are as good as the best and not at this edge: they speak against going further."""
    dimension = sweep.plan.sweep.space[path]
    inner = [
        str(row.number)
        for row in sweep.rows
        if row.number in sweep.tied and path in row.params and edge_of(dimension, row.params[path]) != end
    ]
    if not inner:
        return ""
    return f"; trial{'s' * (len(inner) > 1)} {first_few(inner, 3)}, tied with it, not so"


def _widened(plan: SweepPlan, best: TrialRow, path: str, end: str) -> dict[str, str] | None:
    """Return the keys of a dimension that widen it at one end; None if no run may have such a value."""
    dimension = plan.sweep.space[path]
    for value in _beyond(dimension, end):
        if not _may_run(plan, {**best.params, path: value}):
            continue
        if isinstance(dimension, Choice):
            values = sorted([*_numbers(dimension), value])
            return {"values": f"[{','.join(as_yaml(one) for one in values)}]"}
        return {"high" if end == "upper" else "low": as_yaml(value)}
    return None


def _beyond(dimension: Dimension, end: str) -> Iterator[int | float]:
    """Yield values beyond an end of a dimension, the farthest first."""
    sign = 1 if end == "upper" else -1
    if isinstance(dimension, Choice):
        numbers = _numbers(dimension)
        last, before = (numbers[-1], numbers[-2]) if sign > 0 else (numbers[0], numbers[1])
        if last > 0 and before > 0:  # 64, 128, 256 go on with 512
            ratio = last * last / before
            yield int(ratio) if isinstance(last, int) and ratio == int(ratio) else _rounded(float(ratio))
        yield last + (last - before)
        return
    edge, width = (dimension.high if sign > 0 else dimension.low), dimension.high - dimension.low
    if isinstance(dimension, IntRange):
        far = (edge * 2 if sign > 0 else edge // 2) if dimension.log else int(edge + sign * max(1, width))
        yield from dict.fromkeys(value for value in (far, int(edge) + sign) if value != edge)
    elif dimension.log:
        yield from (_rounded(edge * factor**sign) for factor in (FACTOR, math.sqrt(FACTOR)))
    else:
        wider = (_rounded(edge + sign * width * share) for share in (0.5, 0.1))
        yield from (value for value in wider if sign * (value - edge) > 0)


def _rounded(value: float) -> float:
    """Return a number with two digits, as one would type it."""
    return float(f"{value:.2g}")


def _may_run(plan: SweepPlan, chosen: Mapping[str, Scalar]) -> bool:
    """Return whether a run may have these values, and its model as many groups as are to train."""
    import torch

    from harness.models import apply_freezing, build_model

    try:
        config = plan.compose_trial(chosen)
        with torch.device("meta"):  # nothing is allocated, no weights are read
            apply_freezing(build_model(config.model, NUM_CLASSES, load_weights=False), config.finetune)
    except HarnessError:
        return False
    return True
