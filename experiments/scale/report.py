"""Writes the results of the simulations: results.json for programs, REPORT.md and a plot for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

RESULTS, REPORT, PLOT = "results.json", "REPORT.md", "results.png"
STEPS = {
    "ask": "take + suggest: from wanting a trial to having its values",
    "take": "`Claims.take`: the sweep's lock, who works on what, a new trial",
    "begin": "the trial's process: its lease, its trial, its first beat",
    "suggest": "the sampler's values, one by one into the database, and the trial's overrides",
    "report": "`Lease.check`, the score, and whether to prune",
    "tell": "`Lease.check`, seconds and best epoch, the end",
}
TARGET_RATE, TARGET_ASK_S = 5.0, 2.0  # trials/s, and p99 of ask, at 10,000 trials with 64 workers
GPUS, TRIAL_MINUTES = 64, 5
Row = Mapping[str, Any]


def write(folder: Path, rows: Sequence[Row], fresh: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Write the three files.

    Args:
        rows: one per simulation.
        fresh: the costs of a new process (`fresh_costs`), for each database and number of trials.
        facts: what holds for all simulations together, as `describe` returns it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    thin = [{key: value for key, value in row.items() if key != "ended"} for row in rows]
    content = {**facts, "simulations": thin, "fresh": list(fresh)}
    (folder / RESULTS).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / REPORT).write_text(render(rows, fresh, facts), "utf-8")
    draw(rows).savefig(folder / PLOT, dpi=120)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the number, the percentiles and the maximum of a step's times."""
    p50, p95, p99, largest = np.percentile(seconds, [50, 95, 99, 100])
    return {"n": len(seconds), "p50": p50, "p95": p95, "p99": p99, "max": largest}


def rate(row: Row) -> float:
    """Return how many trials per second a simulation ended."""
    return float(row["num_trials"] / row["seconds"])


def share(row: Row) -> float:
    """Return which share of the machine's busy processor time the workers and the server used."""
    usage = row["usage"]
    return float((usage["workers_cpu_s"] + usage["server_cpu_s"]) / usage["machine_cpu_s"])


def line(row: Row) -> str:
    """Return a simulation's results in one line, which is printed as soon as it ends."""
    return (
        f"{row['database']}, {row['workers']} workers, {row['kind']}: {row['num_trials']} trials up to "
        f"{row['size']:,} in {row['seconds']:.0f} s, {rate(row):.2f}/s, "
        f"p99 of ask {row['steps']['ask']['p99']:.2f} s; books {'; '.join(row['mistakes']) or 'right'}"
    )


# ── the report ────────────────────────────────────────────────────────────────────────────────────


def render(rows: Sequence[Row], fresh: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Return REPORT.md."""
    parts = [
        "# Scale",
        _introduction(facts),
        "## What it means",
        _reading(rows, fresh, facts["sync_ms"]),
        "## The simulations",
        _rates(rows),
        f"![How long the steps of a trial took]({PLOT})",
        "Seconds of each step, p50 / p95 / p99:",
        _steps(rows),
        "\n".join(f"- **{step}**: {meaning}" for step, meaning in STEPS.items()),
        "## What a study costs a process that has just started",
        _fresh(fresh),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(facts: Mapping[str, Any]) -> str:
    before, after = facts["load"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"Written by `{facts['command']}` on {facts['date']}, in {facts['seconds'] / 60:.0f} minutes; each "
        f"simulation ran once. {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB; load "
        f"{before} before and {after} after; commit {facts['commit']}; {versions}.\n\n"
        "Simulated workers take trials and end them, with the very code that workers and trials run "
        "(`Claims`, `Lease`, `search/trial.py`), on the space of `configs/sweep/default.yaml`; instead of "
        "training, a trial reports 10 scores as fast as it can. So all workers ask the database at once, all "
        "the time: as many trials a second as they and the database can do. Workers and database share the "
        "machine. Where a study is longer than what was simulated, it begins with copies of ended trials. "
        "Where a rate is asked for, trials pause after each report, as if there were epochs."
    )


def _reading(rows: Sequence[Row], fresh: Sequence[Row], sync_ms: float) -> str:
    needed = GPUS / (60 * TRIAL_MINUTES)
    lines = [f"{GPUS} GPUs with trials of {TRIAL_MINUTES} minutes need {needed:.2f} trials/s."]
    for database in dict.fromkeys(row["database"] for row in rows):
        here = [row for row in rows if row["database"] == database]
        full = [row for row in here if row["kind"] == "random"][-1]
        calm = next(row for row in here if "asked for" in row["kind"])
        lines += [_highest(full, needed, sync_ms), _calm(calm)]
        if database == "PostgreSQL":
            lines.append(_verdict(full, calm))
    return "\n".join(f"- {text}" for text in [*lines, *map(_start, fresh), _books(rows)])


def _highest(row: Row, needed: float, sync_ms: float) -> str:
    """Return the highest rate, and what bounds it."""
    usage, number = row["usage"], row["num_trials"]
    workers, server = usage["workers_cpu_s"], usage["server_cpu_s"]
    mine = (workers + server) / usage["machine_cpu_s"]
    text = (
        f"**{row['database']}, {row['size']:,} trials, {row['workers']} workers**: {rate(row):.2f} trials/s, "
        f"{rate(row) / needed:.0f} times that. A trial takes {workers / number:.2f} s of the workers' "
        f"processor time and {server / number:.2f} s of the server's; together they had {mine:.0%} of the "
        f"machine's, other programs {1 - mine:.0%}. "
    )
    if row["database"] == "SQLite":
        return text + (
            f"One process writes at a time; the disk takes {sync_ms:.1f} ms for a sync, of which a commit "
            "waits for two or three: what is left of a writer's turn is the processor's."
        )
    return text + (
        "What bounds it is the processor: with all of it, the same work would be "
        f"{rate(row) / mine:.1f} trials/s. As all workers ask at once, a worker's round takes "
        f"{row['workers'] / rate(row):.0f} s on average, most of them in the queue of the sweep's lock: who "
        "waits there leaves the processor to the others."
    )


def _calm(row: Row) -> str:
    ask = row["steps"]["ask"]
    return (
        f"{row['database']}, {row['size']:,} trials, at {rate(row):.2f} trials/s: half of all asks take "
        f"{ask['p50']:.2f} s, 99% less than {ask['p99']:.2f} s."
    )


def _verdict(full: Row, calm: Row) -> str:
    is_fast, is_prompt = rate(full) >= TARGET_RATE, calm["steps"]["ask"]["p99"] < TARGET_ASK_S
    return (
        f"Target ≥ {TARGET_RATE:g} trials/s: {'met' if is_fast else 'not met here'}; p99 of ask < "
        f"{TARGET_ASK_S:g} s at the rate above: {'met' if is_prompt else 'not met here'}."
    )


def _start(costs: Row) -> str:
    seconds = costs["open"] + costs["load"] + costs["suggest"]
    return (
        f"A trial's process on a study of {costs['trials']:,} trials on {costs['database']} spends "
        f"{seconds:.1f} s of processor time before its first epoch ({costs['load']:.1f} s loading the study, "
        f"{costs['suggest']:.1f} s in TPE): {seconds / (60 * TRIAL_MINUTES):.1%} of {TRIAL_MINUTES} minutes."
    )


def _books(rows: Sequence[Row]) -> str:
    kills = sum(row["kills"] for row in rows)
    if any(row["mistakes"] for row in rows):
        return "The books were **wrong** after a simulation: see the table."
    return (
        f"After every simulation, {kills} workers killed by SIGKILL, the books were right: exactly the "
        "budget, numbers 0, 1, 2 …, every trial complete with all of its reports, nothing RUNNING."
    )


def _rates(rows: Sequence[Row]) -> str:
    headings = (
        "database", "workers", "trials by", "up to", "simulated", "s", "trials/s", "connections",
        "GB workers", "GB server", "share of the machine", "killed", "books",
    )  # fmt: skip
    cells = [
        (
            row["database"],
            str(row["workers"]),
            row["kind"],
            f"{row['size']:,}",
            str(row["num_trials"]),
            f"{row['seconds']:.0f}",
            f"{rate(row):.2f}",
            str(row["usage"]["connections"] or "–"),
            f"{row['usage']['workers_gb']:.1f}",
            f"{row['usage']['server_gb']:.1f}" if row["usage"]["server_gb"] else "–",
            f"{share(row):.0%}",
            str(row["kills"] or "–"),
            "; ".join(row["mistakes"]) or "right",
        )
        for row in rows
    ]
    return _table(headings, cells)


def _steps(rows: Sequence[Row]) -> str:
    cells = [
        (
            f"{row['database']}, {row['size']:,}, {row['kind']}",
            *(_three(row["steps"][step]) for step in STEPS),
        )
        for row in rows
    ]
    return _table(("simulation", *STEPS), cells)


def _three(found: Mapping[str, float]) -> str:
    return " / ".join(f"{found[name]:.2g}" for name in ("p50", "p95", "p99"))


def _fresh(fresh: Sequence[Row]) -> str:
    cells = [
        (
            costs["database"],
            f"{costs['trials']:,}",
            *(f"{costs[what]:.2f}" for what in ("open", "load", "suggest", "report", "look")),
            f"{1000 * costs['memory_gb']:.0f}",
        )
        for costs in fresh
    ]
    headings = (
        "database", "trials", "connect", "load the study", "TPE's values", "a report, median pruner",
        "a coordinator's look", "MB of the study",
    )  # fmt: skip
    note = (
        "Seconds of the process's own processor time, medians of three; nothing else of ours ran meanwhile."
    )
    return note + "\n\n" + _table(headings, cells)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# ── the plot ──────────────────────────────────────────────────────────────────────────────────────


def draw(rows: Sequence[Row]) -> Figure:
    """Draw p50 to p99 of ask, report and tell for every simulation, on a logarithmic axis."""
    shown = {"ask": "#b5492d", "report": "#2a7f4f", "tell": "#31688e"}
    figure = Figure(figsize=(9, 1.4 + 0.55 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for height, row in enumerate(reversed(rows)):
        for offset, (step, colour) in enumerate(shown.items()):
            found, y = row["steps"][step], height + 0.22 * (1 - offset)
            label = step if height == 0 else None
            axes.plot([found["p50"], found["p99"]], [y, y], color=colour, linewidth=2, label=label)
            axes.plot([found["p50"]], [y], "o", color=colour, markersize=5)
    names = [f"{row['database']}, {row['size']:,}\n{row['kind']}" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("seconds: p50 (dot) to p99")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
