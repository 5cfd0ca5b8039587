"""Writes the results of a benchmark: results.json for programs, REPORT.md and a plot for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

from experiments.performance.measurement import Result, Side

RESULTS, REPORT, PLOT = "results.json", "REPORT.md", "results.png"
COLOURS = {"met": "#2a7f4f", "falls short": "#b5492d"}
HEADINGS = ("row", "target", "measured", "min – max", "n", "verdict")


def write(folder: Path, results: Sequence[Result], facts: Mapping[str, Any]) -> None:
    """Write the three files.

    Args:
        facts: all that holds for the run as a whole, as `bench.describe` gives it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {**facts, "rows": [asdict(result) for result in results]}
    (folder / RESULTS).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / REPORT).write_text(render(results, facts), "utf-8")
    draw(results).savefig(folder / PLOT, dpi=120)


# ── numbers as text ───────────────────────────────────────────────────────────────────────────────


def number_text(value: float, unit: str = "") -> str:
    """Return a number with three significant digits (a percentage: four); from 100 on, without decimals."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{4 if unit == '%' else 3}g}"


def value_text(result: Result) -> str:
    return "–" if result.value is None else _with_unit(result.value, result.unit)


def target_text(result: Result) -> str:
    return ("≥ " if result.at_least else "≤ ") + _with_unit(result.target, result.unit)


def spread_text(result: Result) -> str:
    if result.low is None or result.high is None:
        return "–"
    return f"{number_text(result.low, result.unit)} – {number_text(result.high, result.unit)}"


def _with_unit(value: float, unit: str) -> str:
    return number_text(value, unit) + (unit if unit in ("×", "%") else f" {unit}")


def _cells(result: Result) -> tuple[str, ...]:
    repeats = str(result.repeats) if result.repeats else "–"
    return (target_text(result), value_text(result), spread_text(result), repeats, result.verdict)


def print_table(console: Console, results: Sequence[Result]) -> None:
    table = Table(box=None, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("row", "verdict") else "right")
    for result in results:
        style = {"met": "green", "falls short": "red"}.get(result.verdict, "dim")
        table.add_row(result.title, *_cells(result), style=style)
    console.print(table)


# ── the report ────────────────────────────────────────────────────────────────────────────────────


def render(results: Sequence[Result], facts: Mapping[str, Any]) -> str:
    """Return REPORT.md."""
    return (
        "\n\n".join(
            [
                "# Performance",
                _introduction(facts),
                _markdown_table(HEADINGS, [(result.title, *_cells(result)) for result in results]),
                f"![Every row in shares of its target]({PLOT})",
                "## The rows",
                "\n\n".join(_details(result) for result in results),
                "## One training step",
                _profile(facts),
                "## Where it was measured",
                _circumstances(facts),
            ]
        )
        + "\n"
    )


def _introduction(facts: Mapping[str, Any]) -> str:
    data = facts["data"]
    lines = [
        f"Written by `{facts['command']}` on {facts['date']}, in {facts['seconds'] / 60:.1f} minutes, on "
        f"{data['name']} ({data['train']:,} training and {data['val']:,} validation images).",
        "Each ratio is of two things measured in turn (A B A B …), each in a fresh process; the value is the "
        "median of the ratios of neighbours, beside the smallest and the largest. The usual script is "
        "[usual_script.py](usual_script.py).",
    ]
    if facts["is_quick"]:
        lines.append("**A quick run: sizes are so small that the numbers mean nothing.**")
    if data["name"] != "cifar10":
        lines.append("**Not CIFAR-10**, which was not at hand: scikit-learn's digits.")
    return "\n".join(lines)


def _details(result: Result) -> str:
    lines = [f"**{result.title}** — {value_text(result)} (target {target_text(result)}): {result.verdict}"]
    lines += [f"- {_side(side)}" for side in result.sides]
    if result.note:
        lines.append(f"- {result.note}.")
    text = "\n".join(lines).replace(f": {result.verdict}\n- ", f": {result.verdict}\n\n- ", 1)
    return f"{text}\n\n{_markdown_table(result.table[0], result.table[1:])}" if result.table else text


def _side(side: Side) -> str:
    return f"{side.name}: {', '.join(number_text(value) for value in side.values)} {side.unit}"


def _profile(facts: Mapping[str, Any]) -> str:
    profile = facts["profile"]
    rows = [
        (f"`{operator['name']}`", f"{operator['share']:.1%}", str(operator["calls"]))
        for operator in profile["operators"]
    ]
    step = (
        f"torch.profiler on {facts['speed_model']}, batch {facts['sizes']['speed_batch']}, with the "
        f"harness's input pipeline, precision and layout: {profile['step_seconds']:.3g} s of CPU time a step."
    )
    return step + "\n\n" + _markdown_table(("operator", "share of the time", "calls a step"), rows)


def _circumstances(facts: Mapping[str, Any]) -> str:
    hardware, auto = facts["hardware"], facts["hardware"]["auto"]
    rates = ", ".join(
        f"{dtype} {flops / 1e9:.0f} GFLOP/s" for dtype, flops in hardware["matmul_flops"].items()
    )
    lines = [
        f"- {hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, "
        f"{hardware['system']}; load before: {facts['load_before']}",
        f"- matmul of 2048: {rates}",
        f"- `auto`: {', '.join(f'{key} {value}' for key, value in auto.items())}",
        f"- commit {facts['commit']}",
        "- " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    ]
    return "\n".join(lines)


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# ── the plot ──────────────────────────────────────────────────────────────────────────────────────


def draw(results: Sequence[Result]) -> Figure:
    """Draw each row's `share` of its target on one logarithmic axis; right of the line, it is met."""
    measured = [result for result in results if result.value is not None][::-1]
    figure = Figure(figsize=(9, 1.2 + 0.42 * max(1, len(measured))), layout="constrained")
    axes = figure.add_subplot()
    for height, result in enumerate(measured):
        _draw_row(axes, height, result)
    axes.axvline(1.0, color="black", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-0.6, max(1, len(measured)) - 0.2)
    axes.margins(x=0.15)
    axes.set_yticks(range(len(measured)), [result.title for result in measured], fontsize=8)
    axes.set_xlabel("measured in shares of the target (right of 1: met)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_row(axes: Axes, height: int, result: Result) -> None:
    assert result.value is not None
    colour, middle = COLOURS[result.verdict], result.share(result.value)
    ends = [result.share(end) for end in (result.low, result.high) if end is not None]
    axes.plot(ends, [height, height], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot([middle], [height], "o", color=colour, markersize=7)
    axes.annotate(
        f"{value_text(result)}  (target {target_text(result)})",
        (middle, height),
        (0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )
