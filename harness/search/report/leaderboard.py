"""A sweep's trials, best first: a table for the terminal, a CSV, and figures of scores and importance.

`messages.py` prints the table; `parent_run.py` stores the rest.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.study import StudyDirection
from optuna.trial import TrialState
from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.config.dotted_paths import short_names
from harness.config.objectives import COSTS
from harness.config.sweep import SweepConfig
from harness.search.report.compute import PFLOP, is_unequal
from harness.search.report.pareto import pareto_front
from harness.search.report.progress import format_score, format_value
from harness.search.report.verdict import Verdict
from harness.search.study import keys
from harness.search.study.trials import TrialRow, ranked, searched, was_removed
from harness.search.trial.replicates import replicated
from harness.tracking import names

FRONT_MARK, TIE_MARK = "*", "≈"
# Optuna's default, a tenth of the trials, is one trial of ten: in 20 simulated studies of 10 trials, the
# setting that decided came first in 13 of them, and in 18 with five good trials.
NUM_GOOD = 5
MIN_TRIALS_FOR_IMPORTANCE = 5  # complete ones; with fewer, importances would be noise


def searched_paths(rows: Sequence[TrialRow]) -> list[str]:
    """Return every searched setting that some trial has a value for, in order of first appearance."""
    return list(dict.fromkeys(path for row in rows for path in row.params))


def leaderboard_table(
    rows: Sequence[TrialRow], sweep: SweepConfig, verdict: Verdict, limit: int = 20
) -> Table:
    """Return the leaderboard for a terminal, with the costs that the sweep optimises or bounds.

    Replicates have no rows of their own: the replicated trial shows their mean. Where the arms trained with
    unequal compute, each trial's is shown.
    """
    rows = searched(rows)
    paths, costs = searched_paths(rows), shown_costs(rows, sweep)
    front = {row.number for row in pareto_front(rows, sweep)}
    fresh, plain = ["fresh seeds"] if verdict.replicates else [], plain_title(rows)
    notes = [
        _hidden(len(rows) - limit),
        f"{FRONT_MARK} on the Pareto front" if front else "",
        f"{TIE_MARK} within noise of the best" if verdict.tied else "",
    ]
    caption = "; ".join(filter(None, notes)) or None
    table = Table(box=SIMPLE_HEAD, padding=0, header_style="bold", caption=caption)
    settings = short_names(paths)
    titles = ["trial", "state", sweep.metric, *plain, *fresh, *costs, "best epoch", *settings, "minutes"]
    for title in titles:  # titles are broken over lines, so that the table fits 80 columns
        table.add_column(re.sub(r"[ _/]", "\n", title), justify="left" if title == "state" else "right")
    for rank, row in enumerate(ranked(rows, sweep.direction)[:limit], start=1):
        table.add_row(
            f"{row.number}{FRONT_MARK if row.number in front else ''}",
            row.state,
            f"{TIE_MARK if row.number in verdict.tied else ''}{format_score(row.score)}",
            *([format_score(row.plain_accuracy)] if plain else []),
            *([mean_of_seeds(verdict, row)] if fresh else []),
            *(format_value(row.costs[cost]) if cost in row.costs else "–" for cost in costs),
            "–" if row.best_epoch is None else str(row.best_epoch + 1),
            *(format_value(row.params[path]) if path in row.params else "" for path in paths),
            "–" if row.seconds is None else f"{row.seconds / 60:.1f}",
            style="bold green" if rank == 1 and row.state == "complete" else None,
        )
    return table


def plain_title(rows: Sequence[TrialRow]) -> list[str]:
    """Return the title of a column with each trial's `plain_accuracy`; none if no trial has one."""
    return ["accuracy without TTA"] if any(row.plain_accuracy is not None for row in rows) else []


def mean_of_seeds(verdict: Verdict, row: TrialRow) -> str:
    """Return the mean of a trial's replicates and their number, as tables show them; empty without any."""
    of_seeds = verdict.replicates.get(row.number)
    return "" if of_seeds is None else f"{of_seeds.mean:.4f} ({of_seeds.n})"


def leaderboard_csv(rows: Sequence[TrialRow], sweep: SweepConfig, verdict: Verdict) -> str:
    """Return the leaderboard as CSV, unrounded, with each trial's MLflow run and checkpoint."""
    paths, front = searched_paths(rows), {row.number for row in pareto_front(rows, sweep)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    first = replicated(rows)
    titles = ["rank", "trial", "state", sweep.metric, *COSTS, "on_front", "best_epoch", *paths]
    titles += [
        "val/accuracy_no_tta",
        "seconds",
        "run_id",
        "checkpoint",
        "reason",
        "training_seed",
        "replicate_of",
        "tied_with_best",
    ]
    writer.writerow(titles)
    for rank, row in enumerate(ranked(rows, sweep.direction), start=1):
        writer.writerow(
            [rank, row.number, row.state, row.score]
            + [row.costs.get(cost) for cost in COSTS]
            + [row.number in front, row.best_epoch]
            + [row.params.get(path) for path in paths]
            + [row.plain_accuracy, row.seconds, row.run_id, _checkpoint(row), row.reason]
            + [row.seed, first.get(row.number), row.number in verdict.tied]
        )
    return text.getvalue()


def _checkpoint(row: TrialRow) -> str | None:
    if row.checkpoint is None:
        return None
    return names.CHECKPOINT_REMOVED if was_removed(row.checkpoint) else str(row.checkpoint)


def shown_costs(rows: Sequence[TrialRow], sweep: SweepConfig) -> list[str]:
    """Return the costs that a leaderboard shows: what the sweep optimises or bounds, and unequal compute.

    Args:
        rows: of the search, without replicates.
    """
    second = [sweep.second_objective.metric] if sweep.second_objective else []
    asked = [*second, *(constraint.cost for constraint in sweep.parsed_constraints())]
    return list(dict.fromkeys([*asked, *([PFLOP] if is_unequal(rows) else [])]))


def history_figure(rows: Sequence[TrialRow], direction: str, metric: str) -> Figure:
    """Return each trial's score in the order of their numbers, with the best so far as a step line."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    rows = searched(rows)
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


def importances_of(study: optuna.Study) -> dict[str, float] | None:
    """Return the importance of each searched setting (PED-ANOVA); None for few trials or equal scores.

    A setting that only some trials have is judged by these.

    Source: Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
    Subspaces", IJCAI 2023, as implemented in Optuna.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    complete = [trial for trial in complete if keys.REPLICATE_OF not in trial.user_attrs]
    if len(complete) < MIN_TRIALS_FOR_IMPORTANCE:
        return None
    share = min(0.5, max(0.1, NUM_GOOD / len(complete)))  # of trials, which PED-ANOVA takes for good ones
    sign = -1.0 if study.directions[0] == StudyDirection.MAXIMIZE else 1.0
    search = optuna.create_study(directions=study.directions)  # in memory, without the replicates
    search.add_trials(complete)
    try:
        # Optuna warns that PED-ANOVA takes low values of `target` as good; `sign` makes low values good.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            importances = optuna.importance.get_param_importances(
                search,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share),
                target=lambda trial: sign * trial.values[0],
            )
    except (RuntimeError, ValueError):  # every score equal, or no setting that all trials have
        return None
    return importances or None


def importance_figure(importances: Mapping[str, float] | None, metric: str) -> Figure | None:
    """Draw the importance of each searched setting; None if there are none."""
    if not importances:
        return None
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(importances)), layout="constrained")
    axes = figure.add_subplot()
    names, values = list(importances)[::-1], list(importances.values())[::-1]
    bars = axes.barh(names, values)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlabel="importance", xlim=(0, 1.1 * max(values) or 1.0), title=f"What mattered for {metric}")
    return figure


def _hidden(count: int) -> str | None:
    return f"and {count} more, see leaderboard.csv" if count > 0 else None
