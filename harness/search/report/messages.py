"""Prints a sweep's state before its trials run, and its result and the next commands afterwards.

`sweep.py` calls `greet` and `show_result`.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from harness.analysis.layout import without_tta
from harness.search.coordinator.completion import num_wanted, reason_to_stop
from harness.search.coordinator.measure_slots import describe as describe_slots
from harness.search.coordinator.slots import Slots
from harness.search.report.findings import Finding
from harness.search.report.leaderboard import leaderboard_table
from harness.search.study.locate import SweepContext
from harness.search.study.trials import TrialRow
from harness.search.trial.replicates import describe_replicates, warn_of_replicates

if TYPE_CHECKING:
    from harness.search.sweep import SweepResult

REPORT_FILE = "report.html"  # in the sweep's folder
PLAIN_WIDTH = 120  # columns, of output into a file or a pipe
NUM_FINDINGS = 3  # of the audit, on the terminal
WHY_STOPPED = {
    "out_of_time": "the time budget (sweep.max_minutes) is up",
    "out_of_space": "the disk of runs is nearly full (sweep.min_free_gb): free some space",
}
NEXT_COMMANDS = "next: make ui (browse) · make compare (table of the runs)"
EXPORT_COMMAND = " · make export (the best model)"


class PatientConsole(Console):
    """A console for pipes whose reader may close early (`| head -2`): the sweep goes on without output."""

    def on_broken_pipe(self) -> None:
        """Say once that nothing more is shown, where rich would end the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        print("nobody reads the output any more: the work goes on without it", file=sys.stderr)


def build_console() -> Console:
    """Return a console as wide as the terminal; without one, plain lines even if FORCE_COLOR is set."""
    is_terminal = sys.stdout.isatty()
    return PatientConsole(force_terminal=is_terminal, width=None if is_terminal else PLAIN_WIDTH)


def greet(console: Console, home: SweepContext, rows: Sequence[TrialRow], slots: Slots) -> None:
    """Print how many trials the sweep has, how many run at a time on what, and how many have ended."""
    ended = sum(row.has_ended for row in rows)
    resumed = sum(row.state == "running" for row in rows)
    before = f"; {ended} have ended before" if ended else ""
    before += f"; {resumed} interrupted to go on" if resumed else ""
    where = f"{slots.num_gpus} GPU(s)" if slots.num_gpus else f"{slots.threads} CPU thread(s) each"
    replicate = home.plan.sweep.replicate
    trials = f"{home.plan.sweep.num_trials} trials" + (
        f", then the best {replicate.top} again with {replicate.seeds} fresh seeds" if replicate.seeds else ""
    )
    say(console, f"sweep {home.name}: {trials}, {slots.count} at a time on {where}{before}")
    if replicate.seeds == 1:
        say(
            console,
            "note: sweep.replicate.seeds=1 gives no interval, as one seed has no spread: use 3 or more",
        )
    if home.directory.name != home.name:
        say(console, f"note: its folder is {home.directory}, as another sweep of this name has left one")
    if warning := warn_of_replicates(home.plan.sweep):
        say(console, warning)
    if slots.measured:
        say(console, describe_slots(slots))
    if slots.warning:
        say(console, f"note: {slots.warning}")


def show_result(console: Console, home: SweepContext, result: SweepResult) -> None:
    """Print the leaderboard, the best trial, and the next commands to type."""
    sweep = home.plan.sweep
    verdict = result.verdict
    if any(row.has_ended for row in result.rows):
        console.print(leaderboard_table(result.rows, sweep, verdict))
    unequal: list[Finding] = []
    if result.best is not None:
        unequal = [finding for finding in result.findings if finding.kind == "unequal"]
        for line in verdict.notes:
            say(console, line)
        say(console, f"best: {verdict.sentence}")
        for line in finding_lines("but:", unequal):
            say(console, line)
    elif result.outcome == "complete":
        say(console, f"no best trial: {_states(result.rows)}")
    if repeated := describe_replicates(result.rows):
        say(console, repeated)
    if result.test_metrics is not None and result.outcome != "interrupted":
        readings = f" ({result.test_readings})" if result.test_readings else ""
        shown = "mAP" if "test/mAP" in result.test_metrics else "accuracy"
        score = f"{shown} {result.test_metrics[f'test/{shown}']:.4f}"
        score += without_tta(result.test_metrics, "test")
        say(console, f"its checkpoint on the test split: {score}{readings}")
    for line in audit_lines([finding for finding in result.findings if finding not in unequal]):
        say(console, line)
    if (report := home.directory / REPORT_FILE).is_file():
        say(console, f"report: {report}")
    if result.outcome == "complete":
        if (reason := reason_to_stop(result.rows, sweep)) is not None:
            say(console, f"no more trials: {reason}")
        say(console, NEXT_COMMANDS + ("" if result.best is None else EXPORT_COMMAND))
        return
    for line in stopped_lines(result, num_wanted(result.rows, sweep), home.command):
        say(console, line)


def audit_lines(findings: Sequence[Finding]) -> list[str]:
    """Return the weightiest findings of the audit, each with the command that would settle it."""
    lines = finding_lines("audit:", findings[:NUM_FINDINGS])
    if len(findings) > NUM_FINDINGS:
        lines.append(f"audit: and {len(findings) - NUM_FINDINGS} more in report.html")
    return lines


def finding_lines(word: str, findings: Sequence[Finding]) -> list[str]:
    """Return findings as lines that begin with a word, each followed by its command."""
    lines = []
    for finding in findings:
        lines.append(f"{word} {finding.sentence}")
        if finding.command is not None:
            lines.append(f"{' ' * len(word)} {finding.command}")
    return lines


def _states(rows: Sequence[TrialRow]) -> str:
    counts = Counter(row.state for row in rows)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def stopped_lines(result: SweepResult, num_trials: int, command: str) -> list[str]:
    """Return the lines about a sweep that has stopped: why, how far it is, and how to continue it."""
    why = WHY_STOPPED.get(result.outcome, "stopped")
    ended = sum(row.has_ended for row in result.rows)
    return [
        f"{why}: {ended} of {num_trials} trials have ended{_resumable(result.rows)}",
        f"repeat the command to go on ({command})",
    ]


def _resumable(rows: Sequence[TrialRow]) -> str:
    parts = [
        f"trial {row.number} goes on "
        + (f"after epoch {row.epochs_done}" if row.epochs_done else "from its start")
        for row in rows
        if row.state == "running"
    ]
    return "; " + ", ".join(parts) if parts else ""


def say(console: Console, text: str) -> None:
    """Print a plain line: no markup in users' names, no wrapping of commands."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
