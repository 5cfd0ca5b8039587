"""A sweep's trials side by side: the table, its CSV, and two pictures."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.trial import TrialState
from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.search.disk import was_removed
from harness.search.progress import format_score, format_value
from harness.search.study import TrialRow
from harness.tracking import names

MIN_TRIALS_FOR_IMPORTANCE = 5  # complete; below that it would be noise with a name
ORDER = {"complete": 0, "pruned": 1, "running": 2, "infeasible": 3, "failed": 4, "waiting": 5}


def ranked(rows: Sequence[TrialRow], direction: str) -> list[TrialRow]:
    """Return the trials best first; pruned ones saw fewer epochs, so they follow the complete ones."""
    sign = 1.0 if direction == "minimize" else -1.0

    def key(row: TrialRow) -> tuple[int, bool, float, int]:
        return ORDER[row.state], row.score is None, sign * (row.score or 0.0), row.number

    return sorted(rows, key=key)


def searched_paths(rows: Sequence[TrialRow]) -> list[str]:
    """Return every path that some trial has a value for, in the order of the space."""
    return list(dict.fromkeys(path for row in rows for path in row.params))


def leaderboard_table(rows: Sequence[TrialRow], direction: str, metric: str, limit: int = 20) -> Table:
    """Return the leaderboard for a terminal."""
    paths = searched_paths(rows)
    table = Table(box=SIMPLE_HEAD, padding=0, header_style="bold", caption=_hidden(len(rows) - limit))
    settings = [_short_name(path, paths) for path in paths]
    titles = ["trial", "state", metric, "best epoch", *settings, "minutes"]
    for title in titles:  # titles over several lines: the table fits a terminal of 80 columns
        table.add_column(re.sub(r"[ _/]", "\n", title), justify="left" if title == "state" else "right")
    for rank, row in enumerate(ranked(rows, direction)[:limit], start=1):
        table.add_row(
            str(row.number),
            row.state,
            format_score(row.score),
            "–" if row.best_epoch is None else str(row.best_epoch + 1),
            *(format_value(row.params[path]) if path in row.params else "" for path in paths),
            "–" if row.seconds is None else f"{row.seconds / 60:.1f}",
            style="bold green" if rank == 1 and row.state == "complete" else None,
        )
    return table


def leaderboard_csv(rows: Sequence[TrialRow], direction: str, metric: str) -> str:
    """Return the leaderboard as CSV, unrounded, with what identifies each trial's record."""
    paths = searched_paths(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["rank", "trial", "state", metric, "best_epoch", *paths, "seconds", "run_id", "checkpoint", "reason"]
    )
    for rank, row in enumerate(ranked(rows, direction), start=1):
        writer.writerow(
            [rank, row.number, row.state, row.score, row.best_epoch]
            + [row.params.get(path) for path in paths]
            + [row.seconds, row.run_id, _checkpoint(row), row.reason]
        )
    return text.getvalue()


def _checkpoint(row: TrialRow) -> str | None:
    if row.checkpoint is None:
        return None
    return names.CHECKPOINT_REMOVED if was_removed(row.checkpoint) else str(row.checkpoint)


def history_figure(rows: Sequence[TrialRow], direction: str, metric: str) -> Figure:
    """Return each trial's score in the order of their numbers, with the best so far as a step line."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for state, marker in (("complete", "o"), ("pruned", "x")):
        shown = _scores(rows, state)
        axes.scatter(list(shown), list(shown.values()), marker=marker, label=state)
    if complete := _scores(rows, "complete"):
        best = np.minimum if direction == "minimize" else np.maximum
        so_far = best.accumulate(list(complete.values()))
        axes.step(list(complete), so_far, where="post", label="best so far")
    axes.set(xlabel="trial", ylabel=metric, title="Scores of the trials")
    axes.legend()
    return figure


def _scores(rows: Sequence[TrialRow], state: str) -> dict[int, float]:
    return {row.number: row.score for row in rows if row.state == state and row.score is not None}


def importance_figure(study: optuna.Study, metric: str) -> Figure | None:
    """Return how much each path mattered (PED-ANOVA); None where there is too little to say.

    Source: Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
    Subspaces", IJCAI 2023, as implemented in Optuna.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < MIN_TRIALS_FOR_IMPORTANCE:
        return None
    try:
        importances = optuna.importance.get_param_importances(study)
    except (RuntimeError, ValueError):  # every score equal, or no path that all trials share
        return None
    if not importances:
        return None
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(importances)), layout="constrained")
    axes = figure.add_subplot()
    names, values = list(importances)[::-1], list(importances.values())[::-1]
    bars = axes.barh(names, values)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlabel="importance", xlim=(0, 1.1 * max(values) or 1.0), title=f"What mattered for {metric}")
    return figure


def _short_name(path: str, paths: Sequence[str]) -> str:
    """Return the last part of a path where no other path ends the same."""
    last = path.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in paths) == 1 else path


def _hidden(count: int) -> str | None:
    return f"and {count} more, see leaderboard.csv" if count > 0 else None
