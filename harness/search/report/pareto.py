"""The Pareto front of a sweep with two objectives: the trials that no other trial beats in both."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from harness.config.sweep import SweepConfig
from harness.search.study.trials import TrialRow


def pareto_front(rows: Sequence[TrialRow], sweep: SweepConfig) -> list[TrialRow]:
    """Return the front, the best score first; of equal trials, the earliest. Empty for one objective."""
    second = sweep.second_objective
    if second is None:
        return []
    first_sign = 1.0 if sweep.direction == "minimize" else -1.0
    second_sign = 1.0 if second.direction == "minimize" else -1.0

    def key(row: TrialRow) -> tuple[float, float, int]:
        return first_sign * (row.score or 0.0), second_sign * row.costs[second.metric], row.number

    front: list[TrialRow] = []
    for row in sorted(_comparable(rows, second.metric), key=key):
        if not front or key(row)[1] < key(front[-1])[1]:
            front.append(row)
    return front


def pareto_figure(rows: Sequence[TrialRow], sweep: SweepConfig) -> Figure | None:
    """Return a plot of the scores over the costs, with the front as a step line; None without a front."""
    second, front = sweep.second_objective, pareto_front(rows, sweep)
    if second is None or not front:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    others = [row for row in _comparable(rows, second.metric) if row not in front]
    axes.scatter(*_coordinates(others, second.metric), label="other")
    costs, scores = _coordinates(sorted(front, key=lambda row: row.costs[second.metric]), second.metric)
    axes.step(costs, scores, where="post" if second.direction == "minimize" else "pre", alpha=0.5)
    axes.scatter(costs, scores, label="Pareto front")
    for row in front:
        place = (row.costs[second.metric], row.score or 0.0)
        axes.annotate(str(row.number), place, textcoords="offset points", xytext=(4, 4))
    axes.set(xlabel=second.metric, ylabel=sweep.metric, title="What a better score costs (numbers: trials)")
    axes.legend()
    return figure


def _comparable(rows: Sequence[TrialRow], cost: str) -> list[TrialRow]:
    return [row for row in rows if row.state == "complete" and row.score is not None and cost in row.costs]


def _coordinates(rows: Sequence[TrialRow], cost: str) -> tuple[list[float], list[float]]:
    return [row.costs[cost] for row in rows], [row.score or 0.0 for row in rows]
