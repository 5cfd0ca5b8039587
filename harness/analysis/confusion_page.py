"""The confusion matrix as a page to point at: it names true class, predicted class, images and share.

`harness.training.evaluate` records it with a run. plotly is imported when it is called, as it takes a moment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.analysis.figures import FEW_CLASSES


def confusion_page(counts_KK: np.ndarray, class_names: Sequence[str], title: str) -> str:
    """Return a self-contained HTML page with the confusion matrix, which opens without a network.

    Args:
        counts_KK: (K, K), row = true class, column = predicted class.
    """
    import plotly.graph_objects as go

    shares_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    names = _different([" ".join(name.split()).replace("<", "&lt;") for name in class_names])
    shown = np.where(counts_KK > 0, 100 * shares_KK, np.nan).astype(np.float32)
    heatmap = go.Heatmap(
        z=shown,
        customdata=counts_KK.astype(np.min_scalar_type(counts_KK.max())),
        x=names,
        y=names,
        colorscale="Cividis",
        reversescale=True,
        zmin=0,
        zmax=100,
        text=np.where(counts_KK > 0, counts_KK.astype(str), "") if len(names) <= FEW_CLASSES else None,
        texttemplate="%{text}" if len(names) <= FEW_CLASSES else None,
        hoverongaps=False,
        hovertemplate="true: %{y}<br>predicted: %{x}<br>%{customdata:,} images, %{z:.1f} %<extra></extra>",
        colorbar={"title": "% of the<br>true class"},
    )
    every = -(-len(names) // 50)
    axis = {"type": "category", "tickvals": names[::every], "constrain": "domain"}
    figure = go.Figure(heatmap)
    figure.update_layout(
        title=title,
        xaxis={**axis, "title": "predicted", "tickangle": -90},
        yaxis={**axis, "title": "true", "autorange": "reversed", "scaleanchor": "x"},
        template="plotly_white",
        height=900,
    )
    return str(figure.to_html(include_plotlyjs=True, full_html=True))


def _different(names: Sequence[str]) -> list[str]:
    """Return the names, with the class's number where two are the same: they would share a row."""
    return [f"{name} (#{place})" if names.count(name) > 1 else name for place, name in enumerate(names)]
