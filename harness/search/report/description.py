"""The text on a sweep's page in MLflow, in Markdown: objective, best trials, how to continue.

`parent_run.py` stores it as the parent run's note.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.config.compose import SweepPlan
from harness.search.report.findings import Finding
from harness.search.report.leaderboard import searched_paths
from harness.search.report.progress import format_score, format_value
from harness.search.study.trials import TrialRow, best_row, ranked
from harness.search.suggest.space import describe_dimension

NUM_SHOWN = 10  # trials


def describe_in_markdown(
    plan: SweepPlan,
    rows: Sequence[TrialRow],
    command: str,
    run_id: str | None,
    findings: Sequence[Finding] = (),
) -> str:
    """Return the description.

    MLflow's page folds the text after about 100 pixels, so the result comes first.

    Args:
        command: the shell command that continues the sweep.
        findings: of the audit, see `audit.py`.
        run_id: of the parent run, whose `history.png` is shown; None: do not show it.
    """
    sweep = plan.sweep
    ended = [row for row in rows if row.has_ended]
    best = best_row(rows, sweep.direction)
    answer = f"**{sweep.direction.capitalize()} {sweep.metric}**: "
    answer += f"{len(ended)} of {sweep.num_trials} trials have ended"
    if best is not None:
        settings = ", ".join(f"`{path}={format_value(value)}`" for path, value in best.params.items())
        answer += f"; the best is trial {best.number} with **{format_score(best.score)}** ({settings})"
    elif ended:
        answer += "; none has a score, so there is no best"
    lines = [answer]
    if ended:
        lines += ["", *_table(ended, plan)]
    lines += ["", "Searched:", *(f"- `{path}`: {describe_dimension(d)}" for path, d in sweep.space.items())]
    if findings:
        lines += ["", "What limits this answer:", *map(_as_item, findings)]
    lines += ["", f"To go on: `{command}`"]
    if ended and run_id is not None:
        lines += ["", f"![Scores of the trials](get-artifact?path=history.png&run_uuid={run_id})"]
    return "\n".join(lines)


def _as_item(finding: Finding) -> str:
    return f"- {finding.sentence}" + (f"  \n  `{finding.command}`" if finding.command else "")


def _table(ended: Sequence[TrialRow], plan: SweepPlan) -> list[str]:
    """Return the best trials as a Markdown table."""
    paths = searched_paths(ended)
    lines = [["trial", "state", plan.sweep.metric, *paths], ["---"] * (3 + len(paths))]
    for row in ranked(ended, plan.sweep.direction)[:NUM_SHOWN]:
        values = [format_value(row.params[path]) if path in row.params else "" for path in paths]
        lines.append([str(row.number), row.state, format_score(row.score), *values])
    more = len(ended) - NUM_SHOWN
    note = [f"and {more} more, in `leaderboard.csv`"] if more > 0 else []
    return [f"| {' | '.join(cells)} |" for cells in lines] + note
