"""The charts of scores in a sweep's report, and the style of all its charts.

Colours are Okabe and Ito's, fields are Cividis: both can be told apart by the colour-blind. `page.py` calls
the functions; each returns None where there is nothing to show.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import FrozenTrial

from harness.analysis.page import FONT
from harness.config.sweep import SweepConfig
from harness.search.report.pareto import pareto_front
from harness.search.report.progress import format_score, format_value
from harness.search.study.trials import TrialRow

if TYPE_CHECKING:
    import plotly.graph_objects as go

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#999999"
SCALE = "Cividis"
STATE_COLOURS = {"complete": BLUE, "pruned": ORANGE, "infeasible": PURPLE, "failed": RED, "running": GREY}
STATE_MARKS = {"complete": "circle", "pruned": "x-thin", "infeasible": "diamond", "failed": "triangle-up"}
MAX_LABEL = 28  # characters of a name in a chart


def label(value: Any, most: int = MAX_LABEL) -> str:
    """Return a value as a short text for a chart; plotly reads some HTML in texts, so signs are escaped."""
    text = " ".join(format_value(value).split())
    return html.escape(text if len(text) <= most else text[: most - 1] + "…", quote=False)


def styled(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """Give a chart the report's style."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        font={"family": FONT, "size": 13, "color": "#222"},
        margin={"l": 70, "r": 30, "t": 30, "b": 60},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left"},
        **layout,
    )
    return figure


def describe(row: TrialRow, metric: str) -> str:
    """Return what a chart says of a trial under the pointer."""
    settings = [f"{label(path, 60)} = {label(value, 60)}" for path, value in list(row.params.items())[:12]]
    score = f"{label(metric, 60)} {format_score(row.score)}"
    return "<br>".join([f"<b>trial {row.number}</b>, {row.state}: {score}", *settings])


def history(rows: Sequence[TrialRow], sweep: SweepConfig, tied: frozenset[int]) -> go.Figure | None:
    """Draw each trial's score by its number, and the best so far as a step line."""
    import plotly.graph_objects as go

    scored = [row for row in rows if row.has_ended and row.score is not None]
    if not scored:
        return None
    figure = go.Figure()
    complete = [row for row in scored if row.state == "complete"]
    if complete:
        best = np.minimum if sweep.direction == "minimize" else np.maximum
        so_far = best.accumulate([row.score or 0.0 for row in complete])
        figure.add_scatter(
            x=[row.number for row in complete],
            y=so_far,
            mode="lines",
            line={"shape": "hv", "color": GREEN, "width": 2},
            name="best so far",
            hoverinfo="skip",
        )
    for state in ("complete", "pruned", "infeasible", "failed"):
        add_points(figure, [row for row in scored if row.state == state], sweep, lambda row: row.number)
    ring(figure, [row for row in complete if row.number in tied], lambda row: row.number)
    return styled(figure, 380, xaxis_title="trial", yaxis_title=label(sweep.metric))


def add_points(
    figure: go.Figure,
    rows: Sequence[TrialRow],
    sweep: SweepConfig,
    place: Callable[[TrialRow], Any],
    **where: Any,
) -> None:
    """Add trials of one state as points: where `place` says, at the height of their scores."""
    if not rows:
        return
    state = rows[0].state
    figure.add_scatter(
        x=[place(row) for row in rows],
        y=[row.score for row in rows],
        mode="markers",
        marker={
            "color": STATE_COLOURS[state],
            "symbol": STATE_MARKS.get(state, "circle"),
            "size": 8,
            "line": {"width": 2 if state == "pruned" else 0, "color": STATE_COLOURS[state]},
        },
        name=state,
        legendgroup=state,
        hovertext=[describe(row, sweep.metric) for row in rows],
        hoverinfo="text",
        **where,
    )


def ring(figure: go.Figure, rows: Sequence[TrialRow], place: Callable[[TrialRow], Any]) -> None:
    """Draw a ring around the trials that are tied with the best."""
    if rows:
        figure.add_scatter(
            x=[place(row) for row in rows],
            y=[row.score for row in rows],
            mode="markers",
            marker={"symbol": "circle-open", "size": 15, "color": GREEN, "line": {"width": 2}},
            name="tied with the best",
            hoverinfo="skip",
        )


def curves(
    rows: Sequence[TrialRow], trials: Sequence[FrozenTrial], sweep: SweepConfig, best: TrialRow | None
) -> go.Figure | None:
    """Draw each trial's scores over its epochs; a cross ends the curve of a pruned one."""
    import plotly.graph_objects as go

    scores = {trial.number: dict(sorted(trial.intermediate_values.items())) for trial in trials}
    shown = [row for row in rows if scores.get(row.number)]
    if not shown:
        return None
    figure = go.Figure()
    for state in ("complete", "pruned", "infeasible", "failed", "running"):
        of_state = [
            row for row in shown if row.state == state and (best is None or row.number != best.number)
        ]
        _add_curves(figure, of_state, scores, sweep, state, width=1.3, opacity=0.6)
    if best is not None and best in shown:
        _add_curves(figure, [best], scores, sweep, f"trial {best.number}, the best", width=3.5, colour=GREEN)
    pruned = [row for row in shown if row.state == "pruned"]
    figure.add_scatter(
        x=[max(scores[row.number]) for row in pruned],
        y=[scores[row.number][max(scores[row.number])] for row in pruned],
        mode="markers",
        marker={"symbol": "x-thin", "size": 9, "color": ORANGE, "line": {"width": 2, "color": ORANGE}},
        name="pruned here",
        hovertext=[describe(row, sweep.metric) for row in pruned],
        hoverinfo="text",
    )
    last = max(max(scores[row.number]) for row in shown)
    ticks = {"dtick": 1} if last <= 20 else {}
    return styled(figure, 400, xaxis={"title": "epoch", **ticks}, yaxis_title=label(sweep.metric))


def _add_curves(
    figure: go.Figure,
    rows: Sequence[TrialRow],
    scores: Mapping[int, Mapping[int, float]],
    sweep: SweepConfig,
    name: str,
    *,
    width: float,
    opacity: float = 1.0,
    colour: str | None = None,
) -> None:
    """Add the curves of several trials as one trace, which draws 500 as fast as one."""
    if not rows:
        return
    x: list[float | None] = []
    y: list[float | None] = []
    texts: list[str] = []
    for row in rows:
        text = describe(row, sweep.metric)
        x += [*scores[row.number], None]
        y += [*scores[row.number].values(), None]
        texts += [f"{text}<br>epoch {step}: {value:.4f}" for step, value in scores[row.number].items()] + [""]
    is_short = all(len(scores[row.number]) == 1 for row in rows)
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers" if is_short or len(x) < 300 else "lines",
        line={"width": width, "color": colour or STATE_COLOURS[rows[0].state]},
        marker={"size": 4},
        opacity=opacity,
        connectgaps=False,
        name=name,
        hovertext=texts,
        hoverinfo="text",
    )


def pareto(rows: Sequence[TrialRow], sweep: SweepConfig) -> go.Figure | None:
    """Draw the scores over the second objective, with the Pareto front; None for one objective."""
    import plotly.graph_objects as go

    second, front = sweep.second_objective, pareto_front(rows, sweep)
    if second is None or not front:
        return None

    def cost(row: TrialRow) -> float:
        return row.costs[second.metric]

    on_front = {row.number for row in front}
    figure = go.Figure()
    for state in ("complete", "infeasible"):
        others = [row for row in rows if row.state == state and second.metric in row.costs]
        scored = [row for row in others if row.score is not None and row.number not in on_front]
        add_points(figure, scored, sweep, cost)
    by_cost = sorted(front, key=cost)
    figure.add_scatter(
        x=[cost(row) for row in by_cost],
        y=[row.score for row in by_cost],
        mode="lines+markers+text",
        text=[str(row.number) for row in by_cost],
        textposition="top center",
        line={"shape": "hv" if second.direction == "minimize" else "vh", "color": GREEN, "width": 2},
        marker={"size": 10, "color": GREEN},
        name="Pareto front",
        hovertext=[f"{describe(row, sweep.metric)}<br>{second.metric} {cost(row):.4g}" for row in by_cost],
        hoverinfo="text",
    )
    return styled(figure, 420, xaxis_title=label(second.metric), yaxis_title=label(sweep.metric))
