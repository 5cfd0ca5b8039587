"""Records a sweep as an MLflow run (the parent of its trials' runs), and in `sweep.json` beside its trials.

`sweep.py` opens a `SweepRecord`. A later `harness sweep` reads only the study's user attributes; `sweep.json`
repeats them for people, and for commands that look for the newest sweep.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import yaml

from harness.config.compose import SweepPlan
from harness.data import load_splits
from harness.errors import type_and_first_line
from harness.files import as_csv, write_json
from harness.search.report.audit import audit
from harness.search.report.commands import TrainCommands
from harness.search.report.costs import device_hours
from harness.search.report.description import describe_in_markdown, describe_trial
from harness.search.report.findings import Finding
from harness.search.report.leaderboard import (
    history_figure,
    importance_figure,
    importances_of,
    leaderboard_csv,
)
from harness.search.report.optimism import measure_optimism
from harness.search.report.pareto import pareto_figure, pareto_front
from harness.search.report.verdict import Verdict, judge_study
from harness.search.study import keys
from harness.search.study.trials import TrialRow, best_row, read_rows
from harness.tracking import Tracker, names
from harness.tracking.environment import capture_environment, record_environment
from harness.tracking.moved import recorded_path
from harness.tracking.tracker import RunStatus

if TYPE_CHECKING:
    from harness.tracking.store import RunStore

logger = logging.getLogger(__name__)

SWEEP_FILE = "sweep.json"


@dataclass
class SweepRecord:
    """Writes the parent run and `sweep.json` while the sweep runs; only the coordinator does so."""

    plan: SweepPlan
    study: optuna.Study
    store: RunStore
    tracker: Tracker
    directory: Path
    command: str  # the shell command that continues the sweep
    status: RunStatus = "FINISHED"  # to be set before `close`
    _num_ended: int = -1

    @cached_property
    def _commands(self) -> TrainCommands:
        return TrainCommands(self.plan, self.study)

    @property
    def best_metric(self) -> str:
        return names.BEST + self.plan.sweep.metric

    def open(self) -> None:
        """Record the sweep's configuration, data and environment."""
        # Imported only here: it imports Lightning and timm, which takes seconds.
        from harness.training.record import record_data

        record_environment(self.tracker, capture_environment())
        record_data(self.tracker, load_splits(self.plan.base.data))
        # Without the database's address: it may hold a password.
        sweep = self.plan.sweep.model_dump(mode="json", exclude={"storage"})
        values = {"sweep": sweep, **self.plan.base.to_dict()}
        self.tracker.log_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "sweep.yaml")
        self.tracker.log_params(self.plan.base.to_dict())
        if measured := self.study.user_attrs.get(keys.SLOTS, {}).get("measured"):
            self.tracker.log_text(as_csv(measured), "slots.csv")
        rows = read_rows(self.study)
        verdict = judge_study(self.study, rows, self.plan.sweep)
        self._describe(rows, verdict)
        self.tracker.set_tags(activity(is_new_call=True))
        self._write_file("running", rows, verdict)

    def follow(self, rows: Sequence[TrialRow]) -> None:
        """Record the best score so far, as a metric of the parent run, whenever a trial has ended."""
        num_ended = sum(row.has_ended for row in rows)
        if num_ended == self._num_ended:
            return
        self._num_ended = num_ended
        self.tracker.set_tags(activity())
        self._describe_trials(rows)
        best = best_row(rows, self.plan.sweep.direction)
        if best is None or best.score is None:
            return
        self.tracker.log_epoch(num_ended, {self.best_metric: best.score})

    def close(self, status: RunStatus) -> None:
        """Record the leaderboard, the figures and which trial is the best; close the run."""
        rows, sweep = read_rows(self.study, self.directory.parents[1]), self.plan.sweep
        optimism = measure_optimism(self.study, self.plan, rows)
        if optimism is not None:
            self.tracker.log_summary({names.CORRECTED + sweep.metric: optimism.corrected})
        verdict = judge_study(self.study, rows, sweep)
        self.tracker.log_text(leaderboard_csv(rows, sweep, verdict), "leaderboard.csv")
        self.tracker.log_figure(history_figure(rows, sweep.direction, sweep.metric), "history.png")
        importances = importances_of(self.study)
        importance = importance_figure(importances, sweep.metric)
        if importance is not None:
            self.tracker.log_figure(importance, "importance.png")
        front = pareto_figure(rows, sweep)
        if front is not None:
            self.tracker.log_figure(front, "pareto.png")
        self._record_best(verdict.best)
        findings = self._audit(rows, verdict)
        best_command = self._commands.of(verdict.best)
        pictures = [
            "history.png",
            "importance.png" * (importance is not None),
            "pareto.png" * (front is not None),
        ]
        self._describe(rows, verdict, findings, [name for name in pictures if name], best_command)
        self._report(rows, verdict, findings, best_command, importances)
        self._describe_trials(rows)
        self.tracker.set_tags(activity())
        self._write_file(status, rows, verdict)
        hours = {names.DEVICE_HOURS: device_hours(self.plan, rows)}
        self.tracker.log_summary(hours, replaces=True)  # a sweep that goes on takes more
        if verdict.noise is not None:
            self.tracker.log_summary({names.NOISE + sweep.metric: verdict.noise})
        self.tracker.finish(status)
        # Last, because a repeated command takes this attribute to mean that all of the above was recorded.
        self.study.set_user_attr(keys.CLOSED, closing_state(rows, verdict.best))

    def _audit(self, rows: Sequence[TrialRow], verdict: Verdict) -> list[Finding]:
        """Return what limits the sweep's answer, and store it for commands that repeat the result."""
        num_train = len(load_splits(self.plan.base.data).train)
        name, tied = self.study.study_name, verdict.tied
        findings = audit(rows, self.plan, name, self.command, tied, num_train)
        self.study.set_user_attr(keys.AUDIT, [finding.to_dict() for finding in findings])
        return findings

    def _report(
        self,
        rows: Sequence[TrialRow],
        verdict: Verdict,
        findings: Sequence[Finding],
        best_command: str | None,
        importances: Mapping[str, float] | None,
    ) -> None:
        """Write `report.html`; an error in a chart does not keep the other results from being stored."""
        from harness.search.report.html import write  # imports plotly

        try:
            facts = write.SweepFacts(
                plan=self.plan,
                study=self.study,
                rows=rows,
                verdict=verdict,
                findings=findings,
                command=self.command,
                best_command=best_command,
                importances=importances,
                num_train=write.count_train_images(self.plan, self.study),
                test=self.study.user_attrs.get(keys.TEST),
            )
            page = write.write_report(facts, self.directory)
        except Exception as error:
            logger.error("%s is not written: %s", write.REPORT_FILE, type_and_first_line(error))
            logger.debug("the report of sweep %s", self.study.study_name, exc_info=True)
            return
        self.tracker.log_text(page, write.REPORT_FILE)

    def _describe(
        self,
        rows: Sequence[TrialRow],
        verdict: Verdict,
        findings: Sequence[Finding] = (),
        pictures: Sequence[str] = (),
        best_command: str | None = None,
    ) -> None:
        run_id = self.tracker.run_id
        note = describe_in_markdown(
            self.plan, rows, verdict, self.command, run_id, findings, pictures, best_command
        )
        self.tracker.set_tags({names.NOTE: note})

    def _describe_trials(self, rows: Sequence[TrialRow]) -> None:
        """Write the text on the page of each trial that has ended and has none yet."""
        known = set(self.study.user_attrs.get(keys.DESCRIBED, []))
        news = [row for row in rows if row.has_ended and row.run_id is not None and row.number not in known]
        for row in news:
            note = describe_trial(row, self.plan, self.study.study_name, self._commands.of(row))
            self.store.note(str(row.run_id), {names.NOTE: note})
        if news:
            self.study.set_user_attr(keys.DESCRIBED, sorted(known | {row.number for row in news}))

    def _record_best(self, best: TrialRow | None) -> None:
        """Tag the run with the best trial; tags of an earlier best trial are removed."""
        params = {} if best is None else {path: str(value) for path, value in best.params.items()}
        tags: dict[str, str | None] = {f"best.{path}": params.get(path) for path in self.plan.sweep.space}
        path = None if best is None else best.checkpoint
        tags |= {
            "harness.best_trial": None if best is None else str(best.number),
            names.BEST_RUN: None if best is None else best.run_id,
            names.CHECKPOINT: None if path is None else recorded_path(path, self.directory.parents[1]),
        }
        self.tracker.set_tags(tags)

    def _write_file(self, status: str, rows: Sequence[TrialRow], verdict: Verdict) -> None:
        known, best = self.study.user_attrs, verdict.best
        content: dict[str, Any] = {
            "name": self.study.study_name,
            "status": status,
            "parent_run_id": known.get(keys.PARENT_RUN_ID),
            "overrides": self.plan.public_overrides,
            "num_trials": self.plan.sweep.num_trials,
            "best": None if best is None else _best_facts(best),
            "verdict": _verdict_facts(verdict),
            "front": [_front_facts(row) for row in pareto_front(rows, self.plan.sweep)],
            "test": known.get(keys.TEST),
            "audit": known.get(keys.AUDIT, []),
            "slots": known.get(keys.SLOTS),
            "compute": known.get(keys.COMPUTE),
            "question": known.get(keys.IDENTITY),
            "extensions": known.get(keys.EXTENSIONS, []),
        }
        write_json(self.directory / SWEEP_FILE, content)


def plan_facts(plan: SweepPlan) -> dict[str, Any]:
    """Return what workers compose the plan from (the overrides), and what `--status` shows of it."""
    sweep = plan.sweep
    return {
        "overrides": plan.public_overrides,
        "num_trials": sweep.num_trials,
        "metric": sweep.metric,
        "replicate": sweep.replicate.model_dump(),
    }


def activity(*, is_new_call: bool = False) -> dict[str, str]:
    """Return the tags by which commands find the sweep that was active, or was started, last."""
    now = f"{time.time():.3f}"
    return {names.ACTIVE_AT: now} | ({names.CALLED_AT: now} if is_new_call else {})


def _verdict_facts(verdict: Verdict) -> dict[str, Any]:
    replicates = {str(number): asdict(of_seeds) for number, of_seeds in verdict.replicates.items()}
    return {
        "sentence": verdict.sentence,
        "notes": list(verdict.notes),
        "noise": verdict.noise,
        "margin": verdict.margin,
        "tied": sorted(verdict.tied),
        "replicates": replicates,
    }


def _front_facts(row: TrialRow) -> dict[str, Any]:
    return {"trial": row.number, "score": row.score, **row.costs}


def _best_facts(best: TrialRow) -> dict[str, Any]:
    checkpoint = str(best.checkpoint) if best.checkpoint else None
    return {
        "trial": best.number,
        "score": best.score,
        "run_id": best.run_id,
        "checkpoint": checkpoint,
        "params": best.params,
    }


def closing_state(rows: Sequence[TrialRow], best: TrialRow | None) -> list[int]:
    """Return how many trials had ended and which was best, to tell whether a closed record is up to date."""
    return [sum(row.has_ended for row in rows), -1 if best is None else best.number]
