"""The report of a sweep as one HTML page: collects what it says, draws its charts, fills in the template.

`write.py` calls `render`. The page loads nothing: plotly.js is in it once, and a policy in its head forbids
the browser to ask a network.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from harness.analysis.page import chart_html, plotly_js, read_template
from harness.config.compose import SweepPlan
from harness.config.dotted_paths import short_names
from harness.search.report.costs import cost_lines
from harness.search.report.findings import Finding
from harness.search.report.html import charts, settings_charts
from harness.search.report.html.timeline import timeline
from harness.search.report.leaderboard import plain_title, searched_paths, shown_costs
from harness.search.report.pareto import pareto_front
from harness.search.report.progress import format_score, format_value
from harness.search.report.verdict import Verdict
from harness.search.study.trials import TrialRow, ranked, searched
from harness.search.suggest.space import describe_dimension
from harness.search.trial.replicates import describe_replicates

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MOST_ROWS = 100  # of the leaderboard; the rest is in leaderboard.csv
FEW_TRIALS = 20  # see NUM_GOOD in leaderboard.py
MOST_LOST = 40  # trials that have no full score, named one by one


@dataclass(frozen=True)
class SweepFacts:
    """All that a report is made of."""

    plan: SweepPlan
    study: optuna.Study
    rows: Sequence[TrialRow]
    verdict: Verdict
    findings: Sequence[Finding]
    command: str  # that continues the sweep
    best_command: str | None  # that trains the best configuration
    importances: Mapping[str, float] | None  # of the searched settings; None: too few trials
    num_train: int | None  # training images; None: not known
    test: Mapping[str, Any] | None  # what the study knows of the best checkpoint on the test split


@dataclass(frozen=True)
class Chart:
    """A chart as HTML, with the text above it."""

    title: str
    caption: str
    html: str


def render(facts: SweepFacts) -> str:
    """Return the report."""
    sweep, rows = facts.plan.sweep, facts.rows
    return read_template(TEMPLATE).render(
        name=facts.study.study_name,
        verdict=facts.verdict,
        notes=facts.verdict.notes,
        figures=_key_figures(facts),
        best_command=facts.best_command,
        command=facts.command,
        findings=facts.findings,
        charts=_charts(facts),
        plotly=plotly_js(),
        board=_leaderboard(facts),
        lost=[row for row in rows if row.state in ("pruned", "infeasible", "failed")][:MOST_LOST],
        lost_counts=_lost_counts(rows),
        replicates=describe_replicates(rows),
        costs=cost_lines(facts.plan, rows, facts.num_train),
        space={path: describe_dimension(dimension) for path, dimension in sweep.space.items()},
        conditional={
            path: sum(path in row.params for row in rows) for path, d in sweep.space.items() if d.when
        },
        sweep=sweep,
        score=format_score,
        rules=[(_condition(rule.when), rule.overrides) for rule in sweep.rules],
    )


def _condition(when: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}={value}" for path, value in when.items()) or "always"


def _key_figures(facts: SweepFacts) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page, with what they are."""
    rows, sweep, best = searched(facts.rows), facts.plan.sweep, facts.verdict.best
    states = Counter(row.state for row in rows if row.has_ended)
    figures = []
    if best is not None:
        if (again := facts.verdict.replicates.get(best.number)) is not None:
            what = f"{sweep.metric}, mean of {again.n} fresh seeds"
            figures.append((what, format_score(again.mean)))
        figures.append((f"{sweep.metric}, trial {best.number}", format_score(best.score)))
    if facts.test is not None and best is not None and facts.test.get("trial") == best.number:
        tested = facts.test.get("metrics", {})
        shown = "mAP" if "test/mAP" in tested else "accuracy"
        figures.append((f"{shown} on the test split", format_score(tested.get(f"test/{shown}"))))
        if (plain := tested.get(f"test/{shown}_no_tta")) is not None:
            figures.append(("without test-time augmentation", format_score(plain)))
    figures.append(("trials ended", f"{sum(states.values())} of {max(sweep.num_trials, len(rows))}"))
    fresh = sum(row.replicate_of is not None and row.state == "complete" for row in facts.rows)
    if fresh:
        figures.append(("trained again with fresh seeds", str(fresh)))
    figures += [(state, str(count)) for state, count in states.most_common()]
    return figures


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def _leaderboard(facts: SweepFacts) -> dict[str, Any]:
    """Return the leaderboard's titles and cells, and how many rows it leaves out.

    Replicates have no rows of their own: the replicated trial shows their mean.
    """
    rows, sweep, verdict = searched(facts.rows), facts.plan.sweep, facts.verdict
    paths, costs = searched_paths(rows), shown_costs(rows, sweep)
    front = {row.number for row in pareto_front(rows, sweep)}
    order, plain = ranked(rows, sweep.direction), plain_title(rows)
    body = []
    for rank, row in enumerate(order[:MOST_ROWS], start=1):
        marks = ["tied"] * (row.number in verdict.tied) + ["front"] * (row.number in front)
        body.append(
            {
                "is_best": verdict.best is not None and row.number == verdict.best.number,
                "is_tied": row.number in verdict.tied,
                "state": row.state,
                "cells": [
                    str(rank),
                    str(row.number),
                    ", ".join([row.state, *marks]),
                    format_score(row.score),
                    *([format_score(row.plain_accuracy)] if plain else []),
                    *([_fresh(verdict, row)] if verdict.replicates else []),
                    *(format_value(row.costs[cost]) if cost in row.costs else "–" for cost in costs),
                    "–" if row.best_epoch is None else str(row.best_epoch + 1),
                    f"{row.epochs_done}/{row.max_epochs or '?'}",
                    *(format_value(row.params[path]) if path in row.params else "" for path in paths),
                    "–" if row.seconds is None else f"{row.seconds / 60:.1f}",
                ],
            }
        )
    fresh = ["fresh seeds, mean and 95 % interval"] if verdict.replicates else []
    titles = ["rank", "trial", "state", sweep.metric, *plain, *fresh, *costs, "best epoch", "epochs"]
    titles += [*short_names(paths), "minutes"]
    return {"titles": titles, "rows": body, "hidden": max(0, len(order) - MOST_ROWS)}


def _fresh(verdict: Verdict, row: TrialRow) -> str:
    """Return the mean over fresh seeds of a trial's configuration, and its interval."""
    known = verdict.replicates.get(row.number)
    if known is None:
        return ""
    interval = "" if known.low is None or known.high is None else f" ({known.low:.4f} to {known.high:.4f})"
    return f"{known.mean:.4f}{interval}, n = {known.n}"


def _lost_counts(rows: Sequence[TrialRow]) -> str:
    counts = Counter(row.state for row in rows)
    lost = [f"{counts[state]} {state}" for state in ("pruned", "infeasible", "failed") if counts[state]]
    deaths = sum(row.deaths for row in rows)
    if deaths:
        lost.append(f"{deaths} process{'es' * (deaths != 1)} of trials died and were replaced")
    return ", ".join(lost)


# ── charts ────────────────────────────────────────────────────────────────────────────────────────


def _charts(facts: SweepFacts) -> list[Chart]:
    """Return every chart for which there are data."""
    rows, sweep, best = searched(facts.rows), facts.plan.sweep, facts.verdict.best
    trials = facts.study.get_trials(deepcopy=False)
    importances = facts.importances
    paths = settings_charts.shown_settings(rows, sweep, importances)
    left_out = len(searched_paths(rows)) - len(paths)
    more = f" The {left_out} least important settings are left out." if left_out > 0 else ""
    has_conditional = any(sweep.space[path].when for path in paths)
    absent = f" One without a setting passes through “{settings_charts.ABSENT}”." if has_conditional else ""
    num_complete = sum(row.state == "complete" for row in rows)
    hint = " With so few, the order is a hint, not a finding." if num_complete < FEW_TRIALS else ""
    drawn = [
        (
            "Optimisation history",
            "The score of every trial, and the best so far.",
            charts.history(rows, sweep, facts.verdict.tied),
        ),
        (
            "What a better score costs",
            "The Pareto front: no other trial is better in both. Numbers are trials.",
            charts.pareto(rows, sweep),
        ),
        (
            "Parallel coordinates",
            f"A line for each of the {num_complete} complete trials.{absent} Drag along an axis to "
            f"select.{more}",
            settings_charts.parallel(rows, sweep, paths),
        ),
        (
            "Score by setting",
            "Complete trials are points, pruned ones crosses at their last score. Other settings vary too, "
            f"so a slope may be theirs.{more}",
            settings_charts.slices(rows, sweep, paths),
        ),
        (
            "Importance of the settings",
            f"PED-ANOVA over {num_complete} complete trials; a conditional setting is judged by the trials "
            f"that have it.{hint}",
            settings_charts.importance_bars(importances, rows),
        ),
        (
            "The two most important settings",
            "Complete trials that have both; where there are enough of them, scores are interpolated "
            "linearly in between.",
            settings_charts.field(rows, sweep, paths),
        ),
        (
            "Learning curves",
            f"{sweep.metric} on the validation images after each epoch; a cross is where a trial was pruned.",
            charts.curves(rows, trials, sweep, best),
        ),
        (
            "Timeline of the slots",
            "A bar for each attempt at a trial, with the trial's number; pale where the process died, as its "
            "end is not known.",
            timeline(facts.rows, trials, sweep.metric, time.time()),
        ),
    ]
    return [
        Chart(title, caption, chart_html(figure, place))
        for place, (title, caption, figure) in enumerate(drawn)
        if figure is not None
    ]
