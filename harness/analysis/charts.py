"""The charts of comparisons: means with intervals, accuracy by class, expected best scores.

`table.py` and `sweeps.py` put them into their pages (`page.py`). A chart is a dictionary of plotly's data and
layout, so that drawing imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.analysis.best_of import SweepCurve
from harness.analysis.page import MARKS, OKABE_ITO, chart_label, chart_labels, chart_layout
from harness.analysis.seeds import Estimate

MOST_CLASSES = 30  # in a chart, of classes or configurations


def estimates_chart(metric: str, estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Draw the mean of each configuration, with its interval."""
    shown = list(estimates.items())[:MOST_CLASSES]
    labels = chart_labels([name for name, _ in shown])[::-1]  # plotly's rows begin at the bottom
    shown.reverse()
    means = [found.mean for _, found in shown]
    above = [0.0 if found.high is None else found.high - found.mean for _, found in shown]
    below = [0.0 if found.low is None else found.mean - found.low for _, found in shown]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": means,
        "y": labels,
        "marker": {"color": OKABE_ITO[0], "size": 10},
        "error_x": {"type": "data", "array": above, "arrayminus": below, "symmetric": False, "thickness": 2},
        "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
    }
    titles = {"xaxis": {"title": {"text": f"{metric}: mean, 95 % interval"}}, "yaxis": {"type": "category"}}
    return {"data": [trace], "layout": chart_layout(130 + 34 * len(shown), **titles)}


def classes_chart(class_names: Sequence[str], accuracies: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Draw each model's accuracy in the classes in which the models differ most.

    At the top is the class in which the first model leads the second most; a line joins these two.

    Args:
        accuracies: of at least two models, by name: float64 (K,), NaN for a class without images.
    """
    all_MK = np.array(list(accuracies.values()))
    present = np.flatnonzero(~np.isnan(all_MK[0]))
    spread = np.ptp(all_MK[:, present], axis=0)
    chosen = present[np.argsort(-spread, kind="stable")[:MOST_CLASSES]]
    chosen = chosen[np.argsort(all_MK[0, chosen] - all_MK[1, chosen], kind="stable")]
    labels = chart_labels(class_names)
    names = [labels[number] for number in chosen]
    gaps = {
        "type": "scatter",
        "mode": "lines",
        "x": [x for number in chosen for x in (*all_MK[:2, number].tolist(), None)],
        "y": [y for name in names for y in (name, name, None)],
        "line": {"color": "#b8bec6", "width": 3},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    models = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": chart_label(model),
            "x": shares[chosen].tolist(),
            "y": names,
            "marker": {
                "color": OKABE_ITO[place % 7],
                "symbol": MARKS[place % 7],
                "size": 10,
                "opacity": 0.85,
            },
            "hovertemplate": "%{y}: %{x:.1%}<extra>" + chart_label(model) + "</extra>",
        }
        for place, (model, shares) in enumerate(accuracies.items())
    ]
    axes = {
        "xaxis": {"title": {"text": "accuracy"}, "tickformat": ".0%"},
        "yaxis": {"type": "category", "categoryarray": names, "categoryorder": "array"},
    }
    return {"data": [gaps, *models], "layout": chart_layout(160 + 26 * len(chosen), **axes)}


def best_of_chart(
    metric: str, curves: Sequence[SweepCurve], budget: float, *, by_minutes: bool
) -> dict[str, Any]:
    """Draw the expected best score of each sweep, with the limits of its interval where there are any."""
    data: list[dict[str, Any]] = []
    for place, curve in enumerate(curves):
        colour = OKABE_ITO[place % len(OKABE_ITO)]
        sizes = np.arange(1, len(curve.scores) + 1)
        x = (sizes * (curve.minutes_per_trial if by_minutes else 1)).tolist()
        limits = [curve.interval(int(size)) for size in sizes]
        data += [
            {
                "type": "scatter",
                "mode": "lines",
                "x": x,
                "y": [pair[side] for pair in limits],
                "line": {"width": 1.5, "color": colour, "dash": "dot"},
                "hoverinfo": "skip",
                "showlegend": False,
            }
            for side in (0, 1)
        ]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": chart_label(curve.name),
                "x": x,
                "y": curve.expected.tolist(),
                "line": {"color": colour, "width": 2.5},
                "marker": {"symbol": MARKS[place % len(MARKS)], "size": 7},
                "hovertemplate": "%{x}: %{y:.4f}<extra>" + chart_label(curve.name) + "</extra>",
            }
        )
    unit = "minutes of training" if by_minutes else "trials"
    axes = {
        "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": f"expected best {metric}"}},
    }
    layout = chart_layout(430, **axes)
    layout["shapes"] = [
        {"type": "line", "x0": budget, "x1": budget, "yref": "paper", "y0": 0, "y1": 1,
         "line": {"color": "#5d6470", "dash": "dot", "width": 1.5}}
    ]  # fmt: skip
    layout["annotations"] = [
        {
            "x": budget,
            "yref": "paper",
            "y": 0.02,
            "xanchor": "right",
            "showarrow": False,
            "text": "smallest budget ",
        }
    ]
    return {"data": data, "layout": layout}
