"""A comparison as a self-contained HTML page: its sections, the template, and the style of its charts.

`table.py` (`compare.html`) and `sweeps.py` (`sweeps.html`) call `render_page`; `charts.py` draws. A sweep's
report (`harness/search/report/html`) reads its template and embeds its charts by the same functions. A page
holds plotly.js and loads nothing. Colours are those of Okabe and Ito, which the colour-blind can tell apart.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("page.html.jinja")
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"
WRITTEN = "%Y-%m-%d %H:%M UTC"  # when a page was made
MOST_ROWS = 200  # of a table on a page; the other files hold all
MOST_LABEL = 34  # characters of a name in a chart


@dataclass(frozen=True)
class Picture:
    """An image with a few lines below it."""

    source: str  # the image itself, as an address `data:image/png;base64,…`
    name: str  # shown under the pointer
    lines: Sequence[tuple[str, str]]  # each a kind (`true`, `right`, `wrong`) and a text


@dataclass(frozen=True)
class Part:
    """A section of a page."""

    title: str
    sentences: Sequence[str] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figure: dict[str, Any] | None = None  # plotly's: data and layout
    note: str = ""  # under the table
    pictures: Sequence[Picture] = ()


def render_page(title: str, answer: str, parts: Sequence[Part]) -> str:
    """Return the page.

    Args:
        answer: the sentence at its top.
    """
    has_figures = any(part.figure for part in parts)
    return read_template(TEMPLATE).render(
        title=title,
        answer=answer,
        parts=[
            (part, chart_html(part.figure, place) if part.figure else None)
            for place, part in enumerate(parts)
        ],
        plotly=plotly_js() if has_figures else "",
    )


@lru_cache
def read_template(path: Path) -> Any:
    """Return a jinja2 template that escapes what it is given, and knows our version and the time."""
    from jinja2 import Environment

    from harness import __version__

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"version": __version__, "now": lambda: datetime.now(UTC).strftime(WRITTEN)}
    return environment.from_string(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def plotly_js() -> Any:
    """Return the library that draws the charts of a page, 5 MB; a page embeds it once."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())


def chart_layout(height: int, **more: Any) -> dict[str, Any]:
    """Return the layout of a chart in the style of the pages; `more` adds to its parts."""
    axis = {"gridcolor": "#e5e8ec", "zerolinecolor": "#b8bec6", "automargin": True}
    layout: dict[str, Any] = {
        "height": height,
        "font": {"family": FONT, "size": 13, "color": "#222"},
        "plot_bgcolor": "#fff",
        "margin": {"l": 70, "r": 30, "t": 30, "b": 60},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": dict(axis),
        "yaxis": dict(axis),
    }
    for name, values in more.items():
        layout[name] = {**layout.get(name, {}), **values}
    return layout


def chart_label(text: str) -> str:
    """Return a name for a chart: short, and without HTML, which plotly would read."""
    plain = " ".join(text.split())
    return html.escape(plain if len(plain) <= MOST_LABEL else plain[: MOST_LABEL - 1] + "…", quote=False)


def chart_labels(texts: Sequence[str]) -> list[str]:
    """Return names for the rows of a chart: plotly would draw rows of equal names as one."""
    labels = [chart_label(text) for text in texts]
    twice = {label for label, number in Counter(labels).items() if number > 1}
    return [f"{label} (#{row})" if label in twice else label for row, label in enumerate(labels)]


def chart_html(figure: Any, place: int) -> Any:
    """Return a chart (plotly's figure or its dict) as a part of a page that embeds `plotly_js`.

    plotly writes `<`, `>` and `/` of names as escape sequences of JSON.

    Args:
        place: among the page's charts.
    """
    from markupsafe import Markup
    from plotly import io

    shown = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    return Markup(
        io.to_html(
            figure,
            config=shown,
            full_html=False,
            include_plotlyjs=False,
            validate=False,
            div_id=f"chart-{place}",
        )
    )
