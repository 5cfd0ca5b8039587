"""What `--json` prints: one document on standard output, whose keys docs/programs.md describes.

A command in `main.py` or `sweeps.py` returns a `Document`, which a function here makes of the command's
result; `main` prints it. The keys are written out by hand, so that they stay the same when a result's class
changes. A key may be added to a schema; whoever removes one, or changes its meaning, raises its number.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.credentials import shown

if TYPE_CHECKING:
    from harness.analysis.combined import Combined, Gain
    from harness.analysis.paired import ImagesReport
    from harness.analysis.sweeps import SweepsComparison
    from harness.analysis.table import Comparison, SeedsReport
    from harness.data.features.cache import StoredFeatures
    from harness.data.groups import GroupSizes
    from harness.data.summary import DataSummary
    from harness.export.bundle import ExportResult
    from harness.search.report.next_steps import NextSteps
    from harness.search.report.status import SweepStatus
    from harness.search.study.trials import TrialRow
    from harness.search.sweep import SweepResult
    from harness.tracking.readings import Noted
    from harness.training.commands.cross_validate import CrossValidation
    from harness.training.commands.finalize import Final
    from harness.training.commands.lr_curve import RateCurve
    from harness.training.commands.lr_find import RateTest
    from harness.training.commands.rerun import Rerun
    from harness.training.evaluate import RunEvaluation
    from harness.training.result import RunResult

Content = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """A command's result for a program, and the command's exit code."""

    schema: str  # such as "harness.sweep/1"
    content: Content
    exit_code: int = 0
    notes: list[str] = field(default_factory=list)  # what is said about the result, one line each

    def to_json(self) -> str:
        """Return the document as JSON in ASCII, which every encoding of a terminal or a pipe can carry."""
        notes = {"notes": self.notes} if self.notes else {}
        whole = {"schema": self.schema, "exit_code": self.exit_code, **self.content, **notes}
        return json.dumps(_plain(whole), indent=2, allow_nan=False)


def of_error(kind: str, message: str, exit_code: int) -> Document:
    """Return the document of a command that has no result.

    Args:
        kind: a class of harness/errors.py; or `UsageError`, or `Interrupted`.
    """
    return Document("harness.error/1", {"error": {"kind": kind, "message": shown(message)}}, exit_code)


@contextmanager
def nothing_else_on_stdout() -> Iterator[None]:
    """Send what this process and those that it starts write to standard output to standard error instead."""
    sys.stdout.flush()
    kept = None
    with suppress(OSError):  # one of the two is closed
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def _plain(value: Any) -> Any:
    """Return a value in JSON's types: NaN and infinity, which JSON lacks, are None."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(value) if math.isfinite(value) else None
        case Path():
            return str(value)
        case Mapping():
            return {str(key): _plain(one) for key, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(one) for one in value]
        case _ if hasattr(value, "tolist"):  # NumPy's numbers and arrays
            return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no place in a document")


def _from_one(epoch: int | None) -> int | None:
    """Return an epoch's number as people count, from 1; None for none."""
    return None if epoch is None or epoch < 0 else epoch + 1


# ── sweeps ────────────────────────────────────────────────────────────────────────────────────────


def of_sweep(result: SweepResult) -> Document:
    """Return the state of a sweep at the end of a command."""
    from harness.search.coordinator.completion import num_wanted
    from harness.search.study.trials import ranked

    sweep, verdict, metrics = result.config, result.verdict, result.test_metrics
    rows = ranked(result.rows, sweep.direction)
    return Document(
        "harness.sweep/1",
        {
            "name": result.name,
            "outcome": result.outcome,
            "run_id": result.parent_run_id,
            "metric": sweep.metric,
            "direction": sweep.direction,
            "num_trials": num_wanted(rows, sweep),
            "num_ended": sum(row.has_ended for row in rows),
            "best": None if result.best is None else _trial(result.best),
            "sentence": verdict.sentence,
            "tied": sorted(verdict.tied),
            "noise": verdict.noise,
            "test": None if metrics is None else {"metrics": metrics, "readings": result.test_readings},
            "audit": [finding.to_dict() for finding in result.findings],
            "trials": [_trial(row) for row in rows],
        },
        result.exit_code,
    )


def of_report(path: Path) -> Document:
    """Return where a sweep's report was written."""
    return Document("harness.sweep-report/1", {"path": str(path)})


def of_status(status: SweepStatus) -> Document:
    """Return how far a sweep is, and which processes work on it."""
    at_work = {row.number for row in status.at_work}
    trials = [{**_trial(row), "is_worked_on": row.number in at_work} for row in status.rows]
    return Document("harness.sweep-status/1", {**_status(status), "trials": trials})


def of_sweeps(sweeps: list[SweepStatus]) -> Document:
    """Return every sweep of a database, the newest last."""
    return Document("harness.sweep-list/1", {"sweeps": [_status(status) for status in sweeps]})


def of_next_steps(steps: NextSteps) -> Document:
    """Return what could be done next with a sweep, the most urgent first."""
    listed = [{"kind": step.kind, "command": step.command, "reason": step.reason} for step in steps.steps]
    return Document("harness.next/1", {"sweep": steps.sweep, "state": steps.state, "steps": listed})


def _status(status: SweepStatus) -> Content:
    return {
        "name": status.name,
        "state": status.state,
        "metric": status.metric,
        "direction": status.direction,
        "num_trials": status.num_trials,
        "num_ended": status.num_ended,
        "num_running": len(status.at_work),
        "best": None if status.best is None else _trial(status.best),
    }


def _trial(row: TrialRow) -> Content:
    return {
        "number": row.number,
        "state": row.state,
        "score": row.score,
        "accuracy_no_tta": row.plain_accuracy,
        "best_epoch": _from_one(row.best_epoch),
        "epochs_done": row.epochs_done,
        "max_epochs": row.max_epochs,
        "params": row.params,
        "seed": row.seed,
        "replicate_of": row.replicate_of,
        "seconds": row.seconds,
        "costs": row.costs,
        "run_id": row.run_id,
        "checkpoint": row.checkpoint,
        "reason": row.reason,
        "num_deaths": row.deaths,
    }


# ── runs ──────────────────────────────────────────────────────────────────────────────────────────


def of_run(result: RunResult, exit_code: int) -> Document:
    """Return the result of one training run."""
    return Document(
        "harness.train/1",
        {
            "run_id": result.run_id,
            "status": result.status,
            "score": result.score,
            "best_epoch": _from_one(result.best_epoch),
            "metrics": result.metrics,
            "checkpoint": result.checkpoint,
            "seconds": result.seconds,
            "costs": result.costs,
        },
        exit_code,
    )


def of_cross_validation(found: CrossValidation) -> Document:
    """Return a configuration's scores over all folds."""
    from harness.analysis.folds import EXPLAINED

    return Document(
        "harness.cross-validate/1",
        {
            "run_id": found.run_id,
            "name": found.name,
            "metric": found.metric,
            "folds": [
                {
                    "fold": one.fold,
                    "run_id": one.run_id,
                    "score": one.score,
                    "best_epoch": _from_one(one.best_epoch),
                    "num_train": one.num_train,
                    "num_val": one.num_val,
                }
                for one in found.folds
            ],
            "metrics": {
                key: {"mean": of.mean, "deviation": of.deviation, "interval_95": [of.low, of.high]}
                for key, of in found.estimates.items()
            },
            "out_of_fold": found.evaluation.metrics,
        },
        notes=[EXPLAINED],
    )


def of_rerun(done: Rerun) -> Document:
    """Return how a run's repetition compares with it."""
    found = done.repetition
    return Document(
        "harness.rerun/1",
        {
            "run_id": done.run_id,
            "rerun_of": done.repeated.run_id,
            "status": "interrupted" if found is None else "finished",
            "code": done.code,
            "differences": list(done.differences),
            "is_equal": None if found is None else found.is_equal,
            "num_equal": None if found is None else found.num_equal,
            "num_values": None if found is None else found.num_values,
            "differing": [] if found is None else [asdict(one) for one in found.differing],
            "checkpoint": done.checkpoint,
        },
        done.exit_code,
        notes=[] if found is None else list(found.notes),
    )


def of_rates(curve: RateCurve, path: Path) -> Document:
    """Return the learning rates of a run, step by step."""
    return Document(
        "harness.lr-curve/1",
        {
            "schedule": curve.schedule,
            "optimizer": curve.optimizer,
            "max_epochs": curve.max_epochs,
            "steps_per_epoch": curve.steps_per_epoch,
            "groups": [{"name": name, "rates": rates} for name, rates in curve.rates.items()],
            "picture": path,
        },
        notes=[curve.note] if curve.note else [],
    )


def of_rate_test(test: RateTest, path: Path) -> Document:
    """Return a learning-rate test: what was tried, and what it suggests."""
    return Document(
        "harness.lr-find/1",
        {
            "optimizer": test.optimizer,
            "rates": test.rates,
            "losses": test.losses,
            "has_diverged": test.has_diverged,
            "rate_of_lowest": None if test.why_none else test.rates[test.lowest],
            "suggestion": test.suggestion,
            "why_none": test.why_none,
            "picture": path,
        },
        notes=[test.note] if test.note else [],
    )


def of_evaluation(done: RunEvaluation) -> Document:
    """Return the scores of a run's checkpoint on a split."""
    return Document(
        "harness.evaluate/1",
        {
            "run": {"run_id": done.run.run_id, "name": done.run.name, "sweep": done.run.sweep},
            "split": done.split,
            "checkpoint": done.checkpoint,
            "metrics": done.metrics,
            "readings": done.readings,
        },
        notes=list(done.notes),
    )


def of_final(final: Final) -> Document:
    """Return a sweep's winner on the test split."""
    return Document(
        "harness.finalize/1",
        {
            "sweep": final.sweep,
            "trial": final.trial,
            "run_id": final.run_id,
            "is_retrained": final.is_retrained,
            "num_epochs": final.num_epochs,
            "num_train": final.num_train,
            "num_test": final.num_test,
            "num_correct": final.num_correct,
            "accuracy": final.accuracy,
            "interval_95": final.interval,
            "metrics": final.metrics,
            "reading": final.reading,
            "checkpoint": final.checkpoint,
            "is_new": final.is_new,
        },
    )


def of_combined(found: Combined) -> Document:
    """Return an ensemble or a soup, and what it is worth."""
    test = found.test_gain
    return Document(
        "harness.ensemble/1",
        {
            "run_id": found.run_id,
            "name": found.name,
            "kind": found.kind,
            "is_greedy": found.is_greedy,
            "sweep": found.sweep,
            "metric": found.metric,
            "members": [
                {
                    "run_id": member.run_id,
                    "name": member.name,
                    "weight": member.weight,
                    "score": member.score,
                    "checkpoint": member.checkpoint,
                }
                for member in found.members
            ],
            "metrics": found.metrics,
            "val_gain": _gain(found.val_gain),
            "test_gain": None if test is None else {**_gain(test), "reading": found.reading},
            "checkpoint": found.checkpoint,
            "is_new": found.is_new,
        },
        notes=list(found.notes),
    )


def _gain(gain: Gain) -> Content:
    return {
        "over": gain.over,
        "accuracy": gain.accuracy,
        "member_accuracy": gain.member_accuracy,
        "difference": gain.difference,
        "interval_95": [gain.low, gain.high],
        "mcnemar_p": gain.p_value,
        "num_images": gain.num_images,
        "num_correct": gain.num_correct,
    }


def of_ledger(noted: list[Noted]) -> Document:
    """Return readings of the test split, in order."""
    listed = [
        {
            "at": one.reading.when,
            "owner": one.owner,
            "owner_run_id": one.owner_id,
            "run_id": one.reading.run or None,
            "command": one.reading.command,
            "number": one.number,
            "of": one.of,
        }
        for one in noted
    ]
    return Document("harness.ledger/1", {"readings": listed})


def of_comparison(comparison: Comparison, files: list[Path]) -> Document:
    """Return a table of runs: one object for each, best first; a value that was not recorded is None.

    Args:
        files: that the table was written to.
    """
    seeds = comparison.seeds
    return Document(
        "harness.compare/1",
        {
            "columns": comparison.columns,
            "runs": [dict(zip(comparison.columns, row, strict=True)) for row in comparison.rows],
            "num_equal_settings": comparison.constant,
            "seeds": None if seeds is None else _seeds(seeds),
            "images": None if comparison.images is None else _images(comparison.images),
            "files": files,
        },
        notes=list(comparison.notes),
    )


def of_sweeps_comparison(comparison: SweepsComparison, files: list[Path]) -> Document:
    """Return whole sweeps side by side; curves hold the expected best of 1, 2, … trials."""
    return Document(
        "harness.compare-sweeps/1",
        {
            "metric": comparison.metric,
            "num_trials_compared": comparison.num_trials,
            "minutes_compared": comparison.minutes,
            "sweeps": [
                {
                    "name": curve.name,
                    "num_trials": len(curve.scores),
                    "outcomes": curve.outcomes,
                    "best": curve.best,
                    "minutes": curve.minutes,
                    "expected_best": curve.expected,
                    "median_interval_95": curve.interval(comparison.num_trials),
                }
                for curve in comparison.curves
            ],
            "findings": comparison.sentences(),
            "files": files,
        },
    )


def _images(images: ImagesReport) -> Content:
    names = images.class_names
    return {
        "models": {name: one.correct.mean() for name, one in images.predictions.items()},
        "pairs": [
            {
                "first": pair.first,
                "second": pair.second,
                "num_images": pair.count,
                "only_first_right": pair.first_alone,
                "only_second_right": pair.second_alone,
                "difference": pair.difference,
                "interval_95": [pair.low, pair.high],
                "mcnemar_p": pair.p_value,
                "holm_p": pair.corrected,
                "class_differences": dict(zip(names, pair.by_class, strict=True)),
                "sentence": sentence,
            }
            for pair, sentence in images.sentences()
        ],
    }


def _seeds(seeds: SeedsReport) -> Content:
    return {
        "metric": seeds.metric,
        "configurations": [
            {
                "name": name,
                "n": estimate.n,
                "mean": estimate.mean,
                "deviation": estimate.deviation,
                "interval_95": None if estimate.low is None else [estimate.low, estimate.high],
            }
            for name, estimate in seeds.estimates.items()
        ],
        "findings": [
            {"first": first, "second": second, "sentence": sentence}
            for (first, second), sentence in seeds.findings
        ],
    }


def of_export(result: ExportResult) -> Document:
    """Return a bundle that was written and verified."""
    config = result.config
    return Document(
        "harness.export/1",
        {
            "path": result.path,
            "files": sorted(path.name for path in result.path.iterdir()),
            "classes": config.classes,
            "thresholds": config.thresholds,
            "input": {"name": config.input.name, "height": config.input.height, "width": config.input.width},
            "run_id": config.run.run_id,
            "metrics": config.run.metrics,
            "test_readings": config.run.test_readings,
            "parity": {
                "num_images": config.parity.num_images,
                "max_abs_difference": config.parity.max_abs_difference,
                "tolerance": config.parity.tolerance,
                "top1_agreement": config.parity.top1_agreement,
            },
            "int8": None if config.int8 is None else config.int8.model_dump(),
        },
    )


# ── data and machine ──────────────────────────────────────────────────────────────────────────────


def of_data(summary: DataSummary) -> Document:
    """Return what a data set holds."""
    splits = summary.splits
    height, width = splits.train.images.shape[1:3]
    return Document(
        "harness.data/1",
        {
            "name": splits.name,
            "source": splits.source,
            "digest": splits.digest,
            "val_digest": splits.val_digest,
            "height": height,
            "width": width,
            "mean": splits.mean,
            "std": splits.std,
            "classes": [
                {"name": name, "train": train, "val": val, "test": test}
                for name, (train, val, test) in summary.counts.items()
            ],
            "num_images": {"train": len(splits.train), "val": len(splits.val), "test": len(summary.test)},
            "groups": None if summary.groups is None else _groups(summary.groups),
            "broken_files": splits.broken_files,
            "not_used": [{"path": path, "reason": why} for path, why in summary.about.passed_over],
            "pictures": summary.pictures,
        },
        notes=summary.notices,
    )


def _groups(groups: GroupSizes) -> Content:
    return {
        "num_groups": groups.num_groups,
        "num_images_in_none": groups.num_alone,
        "smallest": groups.smallest,
        "median": groups.median,
        "largest": groups.largest,
        "num_joined_by_copies": groups.num_joined,
        "by_split": groups.by_split,
    }


def of_features(entries: list[StoredFeatures], removed: bool) -> Document:
    """Return the cached features of frozen backbones, the least recently used first."""
    listed = [
        {
            "folder": entry.folder,
            "last_used_s": entry.used,
            "bytes": entry.num_bytes,
            "model": entry.about["model"],
            "image_size": entry.about["image_size"],
            "data": entry.about["data"],
            "views": entry.about["views"],
        }
        for entry in entries
    ]
    return Document("harness.features/1", {"entries": listed, "were_removed": removed})


def of_machine(facts: Mapping[str, str]) -> Document:
    """Return what a machine has, in words."""
    return Document("harness.doctor/1", {"facts": dict(facts)})
