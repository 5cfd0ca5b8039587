"""The texts on the pages of a sweep and of its trials in MLflow, in Markdown.

`parent_run.py` stores them as the runs' notes. MLflow's page folds a text after about 100 pixels, so the
result comes first, and pictures come last.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence

from harness.config.compose import SweepPlan
from harness.search.report.costs import cost_lines
from harness.search.report.findings import Finding
from harness.search.report.leaderboard import TIE_MARK, mean_of_seeds, plain_title, searched_paths
from harness.search.report.progress import format_score, format_value
from harness.search.report.verdict import Verdict
from harness.search.study.trials import TrialRow, ranked, searched
from harness.search.suggest.space import describe_dimension

NUM_SHOWN = 10  # trials


def describe_in_markdown(
    plan: SweepPlan,
    rows: Sequence[TrialRow],
    verdict: Verdict,
    command: str,
    run_id: str | None,
    findings: Sequence[Finding] = (),
    pictures: Sequence[str] = (),
    best_command: str | None = None,
) -> str:
    """Return the text on a sweep's page: its sentence, figures, trials, audit, commands, pictures.

    Args:
        verdict: of the trials so far.
        command: the shell command that continues the sweep.
        run_id: of the parent run, whose pictures are shown; None: do not show any.
        findings: of the audit, see `audit.py`.
        pictures: names of artifacts of the parent run.
        best_command: the shell command that trains the best trial again.
    """
    ended = [row for row in rows if row.has_ended]
    lines = [f"**{text(verdict.sentence)}**", *(f"\n{text(note)}" for note in verdict.notes)]
    lines += ["", _figures(plan, rows)]
    if ended:
        lines += ["", *_table(ended, plan, verdict)]
    if findings:
        lines += ["", "What limits this answer:", *map(_as_item, findings)]
    if best_command is not None:
        lines += ["", f"The best configuration, trained again: {code(best_command)}"]
    lines += ["", "Searched:"]
    lines += [f"- {text(path)}: {text(describe_dimension(d)[:400])}" for path, d in plan.sweep.space.items()]
    lines += ["", f"To go on: {code(command)}"]
    if ended:
        lines += ["", "The whole report is `report.html`, among the artifacts."]
    if run_id is not None:
        lines += ["", *(f"![{name}](get-artifact?path={name}&run_uuid={run_id})" for name in pictures)]
    return "\n".join(lines)


def describe_trial(row: TrialRow, plan: SweepPlan, sweep: str, command: str | None) -> str:
    """Return the text on the page of a trial that has ended.

    Args:
        sweep: its name.
        command: the shell command that trains it again; None if it cannot be written as one.
    """
    metric = plan.sweep.metric
    what = f"trial {row.number} of sweep {text(sweep)}"
    if row.replicate_of is not None:
        what = f"trial {row.replicate_of} of sweep {text(sweep)} again, with seed {row.seed}"
    epoch = "" if row.best_epoch is None else f" in epoch {row.best_epoch + 1} of {row.max_epochs or '?'}"
    if row.plain_accuracy is not None:
        epoch += f"; without test-time augmentation val/accuracy {format_score(row.plain_accuracy)}"
    score = f"{metric} {format_score(row.score)}{epoch}" if row.score is not None else "no score"
    minutes = "" if row.seconds is None else f", {row.seconds / 60:.1f} minutes"
    lines = [f"**{score}**: {what}, {row.state}{minutes}"]
    if row.reason:
        lines += ["", f"Why: {text(row.reason)}"]
    if row.params:
        lines += ["", "| setting | value |", "| --- | --- |"]
        lines += [f"| {text(path)} | {text(format_value(value))} |" for path, value in row.params.items()]
    if command is not None:
        lines += ["", f"Trained again: {code(command)}"]
    return "\n".join(lines)


def text(words: str) -> str:
    """Return words as Markdown shows them, whatever signs a name has; a cell of a table stays one."""
    return " ".join(html.escape(words, quote=False).split()).replace("|", "\\|").replace("`", "'")


def code(command: str) -> str:
    """Return a command as code within a line; MLflow's page becomes as wide as a block of code."""
    one_line = " ".join(command.splitlines())
    ticks = "``" if "`" in one_line else "`"
    return f"{ticks}{one_line}{ticks}"


def _figures(plan: SweepPlan, rows: Sequence[TrialRow]) -> str:
    """Return the key figures in one line."""
    sweep, search = plan.sweep, searched(rows)
    states = Counter(row.state for row in search if row.has_ended)
    parts = [f"{sum(states.values())} of {max(sweep.num_trials, len(search))} trials have ended"]
    parts += [f"{count} {state}" for state, count in states.most_common()]
    parts += [f"{what}: {value}" for what, value in cost_lines(plan, rows, None) if what != "epochs"]
    return f"{sweep.direction.capitalize()} {sweep.metric} · " + " · ".join(parts)


def _as_item(finding: Finding) -> str:
    sentence = f"- {text(finding.sentence)}"
    return sentence if finding.command is None else f"{sentence}: {code(finding.command)}"


def _table(ended: Sequence[TrialRow], plan: SweepPlan, verdict: Verdict) -> list[str]:
    """Return the best trials as a Markdown table; those tied with the best have a mark."""
    search = searched(ended)
    paths = searched_paths(search)
    fresh, plain = ["fresh seeds"] if verdict.replicates else [], plain_title(search)
    titles = ["trial", "state", plan.sweep.metric, *plain, *fresh, *map(text, paths)]
    lines = [titles, ["---"] * len(titles)]
    for row in ranked(search, plan.sweep.direction)[:NUM_SHOWN]:
        values = [text(format_value(row.params[path])) if path in row.params else "" for path in paths]
        tie = TIE_MARK if row.number in verdict.tied else ""
        scores = [f"{tie}{format_score(row.score)}"]
        scores += [format_score(row.plain_accuracy)] if plain else []
        scores += [mean_of_seeds(verdict, row)] if fresh else []
        lines.append([str(row.number), row.state, *scores, *values])
    more = len(search) - NUM_SHOWN
    notes = [f"and {more} more, in `leaderboard.csv`"] if more > 0 else []
    notes += [f"{TIE_MARK} within noise of the best"] if verdict.tied else []
    return [f"| {' | '.join(cells)} |" for cells in lines] + ["", *notes]
