"""The charts of the searched settings in a sweep's report.

A conditional setting, such as `finetune.trainable_groups`, exists in some trials only: each chart shows it
for these, and says how many they are. `page.py` calls the functions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.config.dotted_paths import short_names
from harness.config.space import Choice, Dimension, Scalar
from harness.config.sweep import SweepConfig
from harness.search.report.html.charts import SCALE, add_points, describe, label, styled
from harness.search.study.trials import TrialRow

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_SETTINGS = 12  # in one chart, the most important first
MOST_TICKS = 20  # names on an axis of categories
ENOUGH_FOR_A_FIELD = 12  # points between which scores are interpolated
ABSENT = "not there"  # the place of a trial that does not have a conditional setting


def shown_settings(
    rows: Sequence[TrialRow], sweep: SweepConfig, importances: Mapping[str, float] | None
) -> list[str]:
    """Return the settings that some trial has, at most `MOST_SETTINGS`, the most important first."""
    used = [path for path in sweep.space if any(path in row.params for row in rows)]
    weights = importances or {}
    return sorted(used, key=lambda path: -weights.get(path, 0.0))[:MOST_SETTINGS]


def importance_bars(importances: Mapping[str, float] | None, rows: Sequence[TrialRow]) -> go.Figure | None:
    """Draw the importance of each setting, with the number of complete trials that have it."""
    import plotly.graph_objects as go

    if not importances:
        return None
    complete = [row for row in rows if row.state == "complete"]
    shown = list(importances.items())[:MOST_SETTINGS][::-1]
    counts = [sum(path in row.params for row in complete) for path, _ in shown]
    names = [
        label(path, 40) + ("" if count == len(complete) else f" (in {count} of {len(complete)})")
        for (path, _), count in zip(shown, counts, strict=True)
    ]
    figure = go.Figure(
        go.Bar(
            orientation="h",
            x=[value for _, value in shown],
            y=names,
            text=[f"{value:.2f}" for _, value in shown],
            textposition="outside",
            cliponaxis=False,
            marker_color="#0072B2",
            hoverinfo="skip",
        )
    )
    figure.update_yaxes(automargin=True, type="category")
    most = max(value for _, value in shown)
    return styled(
        figure, 110 + 34 * len(shown), xaxis={"title": "importance", "range": [0, 1.15 * (most or 1)]}
    )


def slices(rows: Sequence[TrialRow], sweep: SweepConfig, paths: Sequence[str]) -> go.Figure | None:
    """Draw the score over each setting."""
    from plotly.subplots import make_subplots

    scored = [row for row in rows if row.state in ("complete", "pruned") and row.score is not None]
    paths = [path for path in paths if any(path in row.params for row in scored)]
    if not paths:
        return None
    columns = min(3, len(paths))
    lines = math.ceil(len(paths) / columns)
    titles = []
    for path, short in zip(paths, short_names(paths), strict=True):
        having = sum(path in row.params for row in scored)
        titles.append(
            label(short, 34) + ("" if having == len(scored) else f" (in {having} of {len(scored)})")
        )
    height = 70 + 270 * lines
    figure = make_subplots(
        rows=lines,
        cols=columns,
        shared_yaxes=True,
        subplot_titles=titles,
        horizontal_spacing=0.04,
        vertical_spacing=90 / height if lines > 1 else 0,
    )
    for place, path in enumerate(paths):
        where = {"row": place // columns + 1, "col": place % columns + 1}
        place_of = _places(sweep.space[path], path)
        for state in ("complete", "pruned"):
            shown = [row for row in scored if row.state == state and path in row.params]
            add_points(figure, shown, sweep, place_of, showlegend=place == 0, **where)
        figure.update_xaxes(**_axis(sweep.space[path], scored, path), **where)
    figure.update_yaxes(title_text=label(sweep.metric), col=1)
    figure = styled(figure, height)
    figure.update_layout(legend={"y": 1 + 40 / height}, margin={"t": 80})
    return figure


def _places(dimension: Dimension, path: str) -> Callable[[TrialRow], Any]:
    """Return where a trial stands on a setting's axis; 64, 128 and 512 as choices are equally far apart."""
    if not isinstance(dimension, Choice):
        return lambda row: row.params[path]
    names = _names(dimension)
    return lambda row: names.get(row.params[path], label(row.params[path]))


def _names(dimension: Choice) -> dict[Scalar, str]:
    """Return the values of a choice with their labels, a number after those that would be alike."""
    names = {value: label(value) for value in dimension.values}
    alike = Counter(names.values())
    return {
        value: name if alike[name] == 1 else f"{name} (#{place})"
        for place, (value, name) in enumerate(names.items(), start=1)
    }


def _axis(dimension: Dimension, rows: Sequence[TrialRow], path: str) -> dict[str, Any]:
    if not isinstance(dimension, Choice):
        scale = math.log10 if dimension.log else float
        low, high = scale(dimension.low), scale(dimension.high)
        ticks = _number_ticks(dimension, low, high)
        return {
            "type": "log" if dimension.log else "linear",
            "range": [low - 0.06 * (high - low), high + 0.06 * (high - low)],  # all of it: edges are seen
            "tickvals": [10**place if dimension.log else place for place in ticks],
            "ticktext": list(ticks.values()),
            "tickangle": 0,
        }
    tried = {row.params[path] for row in rows if path in row.params}
    names = [name for value, name in _names(dimension).items() if value in tried]
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": names,
        "tickvals": names[:: math.ceil(len(names) / MOST_TICKS) or 1],
        "automargin": True,
    }


def parallel(rows: Sequence[TrialRow], sweep: SweepConfig, paths: Sequence[str]) -> go.Figure | None:
    """Draw each complete trial as a line through its settings to its score.

    A trial without a conditional setting passes below that setting's range, at "not there".
    """
    import plotly.graph_objects as go

    complete = [row for row in rows if row.state == "complete" and row.score is not None]
    if len(complete) < 2 or not paths:
        return None
    paths = [path for path in paths if any(path in row.params for row in complete)]
    shorts = dict(zip(paths, short_names(paths), strict=True))
    dimensions = [_ladder(sweep.space[path], complete, path, shorts[path]) for path in paths]
    scores = [row.score or 0.0 for row in complete]
    axis = {"label": label(sweep.metric), "values": scores}
    if min(scores) == max(scores):  # plotly would draw no ticks
        axis["range"] = [min(scores) - 0.5, max(scores) + 0.5]
    figure = go.Figure(
        go.Parcoords(
            line={
                "color": scores,
                "colorscale": SCALE,
                "reversescale": sweep.direction == "minimize",
                "showscale": True,
                "colorbar": {"title": label(sweep.metric), "thickness": 14},
            },
            dimensions=[*dimensions, axis],
            labelangle=0,
            labelfont={"size": 12},
            tickfont={"size": 11},
        )
    )
    figure = styled(figure, 430)
    figure.update_layout(margin={"l": 90, "r": 40, "t": 60, "b": 30})
    return figure


def _ladder(dimension: Dimension, rows: Sequence[TrialRow], path: str, name: str) -> dict[str, Any]:
    """Return one axis of the parallel coordinates: places on it, and the names of some."""
    is_there = [path in row.params for row in rows]
    at: list[float | None]
    if isinstance(dimension, Choice):
        tried = {row.params[path] for row in rows if path in row.params}
        names = {value: name for value, name in _names(dimension).items() if value in tried}
        places = {value: float(place) for place, value in enumerate(names)}
        at = [places.get(row.params[path]) if path in row.params else None for row in rows]
        every = math.ceil(len(places) / MOST_TICKS) or 1
        ticks = {float(place): name for place, name in list(enumerate(names.values()))[::every]}
        low, high = 0.0, float(max(len(places) - 1, 1))
    else:
        scale = math.log10 if dimension.log else float
        at = [scale(row.params[path]) if path in row.params else None for row in rows]
        low, high = scale(dimension.low), scale(dimension.high)
        ticks = _number_ticks(dimension, low, high)
    if not all(is_there):
        below = low - 0.15 * (high - low)
        at = [below if place is None else place for place in at]
        ticks = {below: ABSENT, **ticks}
        low = below
    return {
        "label": label(name, 22),
        "values": at,
        "range": [low, high],
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
    }


def _number_ticks(dimension: Dimension, low: float, high: float) -> dict[float, str]:
    is_log = not isinstance(dimension, Choice) and dimension.log
    if dimension.type == "int" and not is_log and high - low <= 8:
        return {float(value): str(value) for value in range(int(low), int(high) + 1)}
    places = np.linspace(low, high, 5)
    return {float(place): f"{10**place if is_log else place:.2g}" for place in places}


def field(rows: Sequence[TrialRow], sweep: SweepConfig, paths: Sequence[str]) -> go.Figure | None:
    """Draw the scores over the two most important settings that trials share.

    Where both are ranges and there are enough trials, the scores between them are interpolated linearly; the
    field ends where the trials do.
    """
    import plotly.graph_objects as go

    complete = [row for row in rows if row.state == "complete" and row.score is not None]
    pair = next(
        (
            (one, other)
            for place, one in enumerate(paths)
            for other in paths[place + 1 :]
            if sum(one in row.params and other in row.params for row in complete) >= 3
        ),
        None,
    )
    if pair is None:
        return None
    across, up = pair
    shown = [row for row in complete if across in row.params and up in row.params]
    scores = [row.score or 0.0 for row in shown]
    x, y = (list(map(_places(sweep.space[path], path), shown)) for path in pair)
    colours = {"colorscale": SCALE, "reversescale": sweep.direction == "minimize"}
    figure = go.Figure()
    if (interpolated := _interpolated(sweep.space[across], sweep.space[up], x, y, scores)) is not None:
        grid_x, grid_y, grid_z = interpolated
        limits = {"start": min(scores), "end": max(scores), "size": (max(scores) - min(scores)) / 12 or 1}
        figure.add_contour(
            x=grid_x, y=grid_y, z=grid_z, contours=limits, showscale=False, hoverinfo="skip",
            line={"width": 0.5, "color": "white"}, zmin=min(scores), zmax=max(scores), **colours,
        )  # fmt: skip
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers",
        marker={
            "size": 12,
            "color": scores,
            "cmin": min(scores),
            "cmax": max(scores),
            "line": {"width": 1.5, "color": "white"},
            "colorbar": {"title": label(sweep.metric), "thickness": 14},
            **colours,
        },
        hovertext=[describe(row, sweep.metric) for row in shown],
        hoverinfo="text",
        showlegend=False,
    )
    figure.update_xaxes(title=label(across, 60), **_axis(sweep.space[across], shown, across))
    figure.update_yaxes(title=label(up, 60), **_axis(sweep.space[up], shown, up))
    return styled(figure, 440)


def _interpolated(
    across: Dimension, up: Dimension, x: Sequence[Any], y: Sequence[Any], scores: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return a grid of scores between the trials (NaN beyond them); None if that would mean nothing."""
    from scipy.interpolate import griddata
    from scipy.spatial import QhullError

    if isinstance(across, Choice) or isinstance(up, Choice) or len(x) < ENOUGH_FOR_A_FIELD:
        return None
    scales = [np.log10 if dimension.log else np.asarray for dimension in (across, up)]
    places = [scale(np.asarray(values, dtype=float)) for scale, values in zip(scales, (x, y), strict=True)]
    spans = [float(np.ptp(place)) for place in places]
    if min(spans) == 0 or len({*zip(x, y, strict=True)}) < ENOUGH_FOR_A_FIELD:
        return None
    axes = [np.linspace(place.min(), place.max(), 60) for place in places]
    points = np.stack([place / span for place, span in zip(places, spans, strict=True)], axis=1)
    mesh = np.meshgrid(axes[0] / spans[0], axes[1] / spans[1])
    try:
        grid = griddata(points, np.asarray(scores), tuple(mesh), method="linear")
    except QhullError:  # all on one line
        return None
    grid_x, grid_y = (10**axis if d.log else axis for axis, d in zip(axes, (across, up), strict=True))
    return grid_x, grid_y, grid
