"""What could be done next with a sweep, each step as a command and the reason for it: `harness next`.

The steps follow from the sweep's database alone: go on while it has not ended; then what its audit asks for,
fresh seeds, the final test, the export. `harness/cli/sweeps.py` prints them, for people and for programs.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import optuna

from harness.config.compose import CONFIG_DIR, compose_sweep
from harness.errors import HarnessError
from harness.search.coordinator.completion import has_ended
from harness.search.report.status import SweepStatus, read_status
from harness.search.study import keys

Kind = Literal["watch", "continue", "replicate", "settle", "finalize", "export", "compare", "extend"]


@dataclass(frozen=True)
class Step:
    """Something that could be done with a sweep."""

    kind: Kind
    command: str
    reason: str


@dataclass(frozen=True)
class NextSteps:
    """What could be done with a sweep, the most urgent first."""

    sweep: str
    state: Literal["running", "stopped", "complete"]
    steps: list[Step]

    def __str__(self) -> str:
        lines = [f"sweep {self.sweep}: {self.state}"]
        for step in self.steps:
            lines += [f"{step.kind}: {step.reason}", f"    {step.command}"]
        return "\n".join(lines)


def next_steps(study: optuna.Study, mlruns: str | None = None, storage: str | None = None) -> NextSteps:
    """Return what could be done with a sweep.

    Args:
        mlruns: the folder of runs, if it was named on the command line; the commands then name it too.
        storage: likewise the database of sweeps.
    """
    status = read_status(study)
    known = study.user_attrs.get(keys.PLAN, {})
    overrides: list[str] = list(known.get("overrides", []))
    if not any(text.startswith("sweep.name=") for text in overrides):
        overrides.append(f"sweep.name={status.name}")
    runs = [] if mlruns is None else ["--mlruns", mlruns]
    database = [] if storage is None else ["--storage", storage]
    again = shlex.join(["harness", "sweep", *overrides, *database])
    if status.at_work:
        watch = shlex.join(["harness", "sweep", "--status", status.name, *runs, *database])
        reason = f"{len(status.at_work)} trials are being trained; {_ended(status)}"
        return NextSteps(status.name, "running", [Step("watch", watch, reason)])
    if not _is_complete(status, overrides):
        return NextSteps(status.name, "stopped", [Step("continue", again, _ended(status))])
    steps = [] if status.best is None else list(_of_answer(study, status, runs, database))
    budget = known.get("num_trials") or len(status.rows)
    others = [text for text in overrides if not text.startswith("sweep.num_trials=")]
    more = shlex.join(["harness", "sweep", *others, f"sweep.num_trials={2 * budget}", *database])
    none = "" if status.best else "no trial is complete, so there is no answer yet: "
    steps.append(Step("extend", more, f"{none}twice as many trials of the same sweep; the {budget} are kept"))
    return NextSteps(status.name, "complete", steps)


def _ended(status: SweepStatus) -> str:
    return f"{status.num_ended} of {status.num_trials or '?'} trials have ended"


def _is_complete(status: SweepStatus, overrides: Sequence[str]) -> bool:
    """Tell whether the sweep needs no trial any more, be it that a target or its patience has ended it."""
    try:
        return has_ended(status.rows, compose_sweep(overrides, CONFIG_DIR).sweep)
    except HarnessError:  # its files of configuration are elsewhere: the budget alone is known
        return status.state == "complete"


def _of_answer(study: optuna.Study, status: SweepStatus, runs: list[str], database: list[str]) -> list[Step]:
    """Return the steps after a sweep that has a best trial."""
    name, best = status.name, status.best
    assert best is not None
    steps = []
    if not any(row.replicate_of == best.number for row in status.rows):
        command = shlex.join(["harness", "replicate", name, "--top", "3", "--seeds", "5", *runs, *database])
        reason = f"trial {best.number}, the best, was trained with one seed: how much is luck is open"
        steps.append(Step("replicate", command, reason))
    for finding in study.user_attrs.get(keys.AUDIT, []):
        if finding.get("command"):
            steps.append(Step("settle", finding["command"], finding["sentence"]))
    has_read = study.user_attrs.get(keys.TEST, {}).get("trial") == best.number
    reading = (
        "the sweep has read the test split with the winner's checkpoint: shows that, with its interval, "
        "without another reading"
        if has_read
        else "the test split was not read with the winner's checkpoint: reads it once, with an interval"
    )
    return [
        *steps,
        Step("finalize", shlex.join(["harness", "finalize", name, *runs]), reading),
        Step(
            "export",
            shlex.join(["harness", "export", "--run", name, *runs]),
            f"trial {best.number}, {status.metric} {best.score:.4f}, as a verified bundle",
        ),
        Step(
            "compare",
            shlex.join(["harness", "compare", "--sweep", name, *runs]),
            "the trials side by side: scores, time, what differs",
        ),
    ]
