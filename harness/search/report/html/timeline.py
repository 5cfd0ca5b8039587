"""Which slot of a sweep worked on which trial, and when: one bar for each attempt at a trial.

Attempts are packed into as few rows as held them at the same time on one machine. Each attempt stores when it
began, and when it was stopped; the end of the last one is the trial's. `page.py` calls `timeline`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from harness.search.report.html.charts import STATE_COLOURS, describe, styled
from harness.search.report.progress import format_seconds
from harness.search.study import keys
from harness.search.study.trials import TrialRow

if TYPE_CHECKING:
    import plotly.graph_objects as go

OVERLAP_S = 0.5  # clocks of a coordinator's and a trial's process differ by less


@dataclass(frozen=True)
class Span:
    """One attempt at a trial; times in seconds since 1970, of the machine that it ran on."""

    number: int
    attempt: int
    host: str
    begin: float
    end: float
    is_end_known: bool = True


def spans_of(trials: Sequence[FrozenTrial], now: float) -> list[Span]:
    """Return every attempt of every trial, the earliest first.

    The end of an attempt that was killed is not known: it is taken to be the beginning of the trial's next
    one. Trials of earlier versions stored no attempts: each is one span.
    """
    spans = []
    for trial in trials:
        known: Mapping[str, Mapping[str, float | str]] = trial.user_attrs.get(keys.SPANS, {})
        finished = None if trial.datetime_complete is None else trial.datetime_complete.timestamp()
        if not known and trial.datetime_start is not None and trial.params:
            known = {"1": {"begin": trial.datetime_start.timestamp(), "host": ""}}
        # An attempt that was stopped before it opened its run has no beginning.
        begun = [item for item in known.items() if "begin" in item[1]]
        attempts = sorted(begun, key=lambda item: int(item[0]))
        for place, (attempt, facts) in enumerate(attempts):
            begin = float(facts["begin"])
            is_last = place == len(attempts) - 1
            later = (finished or now) if is_last else float(attempts[place + 1][1]["begin"])
            end = facts.get("end")
            is_known = end is not None or (is_last and finished is not None)
            shown = max(begin, float(end) if end is not None else later)
            spans.append(Span(trial.number, int(attempt), str(facts.get("host", "")), begin, shown, is_known))
    return sorted(spans, key=lambda span: (span.begin, span.number))


def lanes_of(spans: Sequence[Span]) -> dict[Span, tuple[str, int]]:
    """Return the machine and the row (from 0) of each attempt: the first that is free when it begins."""
    free: dict[str, list[float]] = {}
    lanes = {}
    for span in spans:
        ends = free.setdefault(span.host, [])
        lane = next((i for i, end in enumerate(ends) if end <= span.begin + OVERLAP_S), len(ends))
        ends[lane : lane + 1] = [span.end]
        lanes[span] = (span.host, lane)
    return lanes


def timeline(
    rows: Sequence[TrialRow], trials: Sequence[FrozenTrial], metric: str, now: float
) -> go.Figure | None:
    """Draw slots over time, a bar for each attempt, coloured by how the trial ended."""
    import plotly.graph_objects as go

    spans = spans_of(trials, now)
    if not spans:
        return None
    lanes, by_number = lanes_of(spans), {row.number: row for row in rows}
    hosts = list(dict.fromkeys(span.host for span in spans))
    start = spans[0].begin
    unit, seconds = _unit(max(span.end for span in spans) - start)
    figure = go.Figure()
    for state, colour in STATE_COLOURS.items():
        shown = [span for span in spans if by_number[span.number].state == state]
        if not shown:
            continue
        figure.add_bar(
            orientation="h",
            y=[_lane_name(*lanes[span], hosts) for span in shown],
            base=[(span.begin - start) / seconds for span in shown],
            x=[(span.end - span.begin) / seconds for span in shown],
            marker={
                "color": colour,
                "opacity": [0.85 if span.is_end_known else 0.3 for span in shown],
                "line": {"color": "white", "width": 1},
            },
            text=[str(span.number) for span in shown],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            constraintext="inside",
            hovertext=[_say(span, by_number[span.number], metric) for span in shown],
            hoverinfo="text",
            name=state,
        )
    order = sorted({lanes[span] for span in spans}, key=lambda lane: (hosts.index(lane[0]), lane[1]))
    names = [_lane_name(*lane, hosts) for lane in order]
    began = datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d %H:%M UTC")
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], type="category")
    return styled(
        figure, 150 + 34 * min(len(names), 24), barmode="overlay", xaxis_title=f"{unit} since {began}"
    )


def _unit(seconds: float) -> tuple[str, float]:
    return (
        ("seconds", 1.0) if seconds < 300 else ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)
    )


def _lane_name(host: str, lane: int, hosts: Sequence[str]) -> str:
    from harness.search.report.html.charts import label

    return f"slot {lane + 1}" + (f" on {label(host, 20)}" if len(hosts) > 1 and host else "")


def _say(span: Span, row: TrialRow, metric: str) -> str:
    lasted = format_seconds(span.end - span.begin)
    attempt = f"attempt {span.attempt}" if row.attempt > 1 else "one attempt"
    end = f"{attempt}, {lasted}" if span.is_end_known else f"{attempt}: its process still runs, or died"
    return f"{describe(row, metric)}<br>{end}"
