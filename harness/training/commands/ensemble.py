"""`harness ensemble`: several trained models as one, by their mean probabilities or by their mean weights.

`harness.cli` and `harness.api` call `combine`. It chooses the members on the validation images, compares the
whole with the best member on the same images, records it as a run of its own, and reads the test split if it
is asked to, once. Weights are averaged in `soup.py`; predictions come from `evaluate.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.analysis.combined import (
    Combined,
    Gain,
    Member,
    compare_with,
    mean_probabilities,
    select_greedily,
)
from harness.analysis.evaluation import Evaluation, evaluate
from harness.analysis.metrics import split_metrics
from harness.analysis.paired import check_same_images
from harness.analysis.predictions import Predictions, predictions_of
from harness.config.monitor import BY_ACCURACY, MonitorConfig
from harness.config.schema import TrackingConfig
from harness.errors import TrackingError
from harness.tracking import Tracker, names
from harness.tracking.artifacts import read_artifact
from harness.tracking.choice import COMPLETE, RecordedSweep, choose, read_sweep
from harness.tracking.moved import found_path, recorded_path
from harness.tracking.readings import count_readings, note_reading
from harness.tracking.runs import RunRecord, get_run, search_runs
from harness.tracking.store import RunStore, open_store
from harness.training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from harness.training.devices.machine import prepare_process
from harness.training.evaluate import predict_split, validation_predictions
from harness.training.record_evaluation import look_closely, record_evaluation

RESULT = "ensemble.json"  # the artifact in which a result is kept
Show = Callable[[str], None]


def combine(
    tracking: TrackingConfig,
    references: Sequence[str] = (),
    *,
    top: int = 5,
    greedy: bool = False,
    soup: bool = False,
    test: bool = False,
    again: bool = False,
    show: Show = print,
) -> Combined:
    """Combine a sweep's best models, or the named runs', into one; record it, and test it if asked to.

    Args:
        references: a sweep's name or id, for its `top` best trials; or two and more runs; empty for the sweep
            that ran last.
        greedy: choose members on the validation images. Of an ensemble: models are added one by one, each as
            often as it helps, and the best set of all rounds is kept (Caruana et al., 2004). Of a soup: from
            the best model on, one that makes the mean no worse stays in it (Wortsman et al., 2022).
        soup: average the weights, not the probabilities.
        test: evaluate it on the test split, unless an earlier call has.
        again: evaluate it there once more.
        show: called with lines about what is done.

    Raises:
        TrackingError: there are no two such runs with checkpoints, or they answer different images.
        CheckpointError: weights of different networks cannot be averaged.
        HarnessError: a checkpoint or its data are gone.
    """
    candidates, sweep = _candidates(tracking, references, top, show)
    named = " ".join(references) if len(references) > 1 else f"{sweep and sweep.name} --top {top}"
    work = _Work(tracking, open_store(tracking), candidates, sweep, named, greedy, soup, show)
    work.check()
    found = work.recorded()
    if found is None:
        found = work.make()
    else:
        show("these models were combined before: it is not done again")
    if test and (found.test_gain is None or again):
        return work.test(found, "--test" + " --again" * (found.test_gain is not None))
    if test:
        show("it was tested before: --again reads the test split once more")
    return found


# ── who may be a member ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Candidate:
    """A run that may become a member, with its checkpoint and its answers to the validation images."""

    run: RunRecord
    path: Path
    checkpoint: Checkpoint
    predictions: Predictions

    @property
    def label(self) -> str:
        return f"{self.run.name} ({self.run.run_id[:8]})"

    def score(self, metric: str) -> float:
        return _score(self.predictions.logits, self.predictions.labels, metric)


def _candidates(
    tracking: TrackingConfig, references: Sequence[str], top: int, show: Show
) -> tuple[list[Candidate], RecordedSweep | None]:
    """Return the runs that may be members, best first, and the sweep whose trials they all are, if any."""
    first = references[0] if references else None
    if len(references) < 2:
        sweep = choose(tracking, first).sweep
        if sweep is None or (first is not None and get_run(tracking, first).kind != "sweep"):
            raise TrackingError(f"{first or 'the last run'} is no sweep: name one, or two runs and more")
        runs = _best_of(sweep, tracking, top, show)
    else:
        chosen = [choose(tracking, reference) for reference in references]
        runs = list({choice.run.run_id: choice.run for choice in chosen}.values())
        parents = {run.parent_run_id if run.kind == "trial" else None for run in runs}
        parent = parents.pop() if len(parents) == 1 else None
        sweep = None if parent is None else read_sweep(tracking, get_run(tracking, parent))
    if len(runs) < 2:
        raise TrackingError("one model is no ensemble: name two different runs and more")
    candidates = []
    for run in runs:
        path = found_path(str(run.checkpoint), tracking.dir)
        checkpoint = load_checkpoint(path)
        if checkpoint.config.is_multilabel:
            raise TrackingError(
                f"run {run.run_id} ({run.name}) is of multi-label images: harness ensemble is for "
                "images of one class each"
            )
        predictions = validation_predictions(tracking, run, checkpoint, show)
        candidates.append(Candidate(run, path, checkpoint, predictions))
    monitor = _monitor_of(candidates)
    sign = -1.0 if monitor.direction == "minimize" else 1.0
    return sorted(candidates, key=lambda one: -sign * one.score(monitor.metric)), sweep


def _monitor_of(candidates: Sequence[Candidate]) -> MonitorConfig:
    """Return the metric that ranks the candidates: their own, or accuracy if they have several."""
    monitors = [one.checkpoint.config.trainer.monitor for one in candidates]
    return monitors[0] if all(monitor == monitors[0] for monitor in monitors) else BY_ACCURACY


def _best_of(sweep: RecordedSweep, tracking: TrackingConfig, top: int, show: Show) -> list[RunRecord]:
    """Return a sweep's best complete trials that have kept their checkpoints."""
    if top < 2:
        raise TrackingError(f"--top {top}: an ensemble has two members and more")
    if sweep.parent.status != "FINISHED":
        show(f"note: sweep {sweep.name} has not ended; better trials may come")
    complete = [
        trial
        for trial in sweep.ranked
        if trial.outcome in COMPLETE
        and names.REPLICATE_OF not in trial.tags
        and sweep.score(trial) is not None
    ]
    extreme = sorted(complete, key=lambda trial: (sweep.score(trial) or 0.0) * (1 if sweep.minimizes else -1))
    kept = [one for one in extreme if one.checkpoint and found_path(one.checkpoint, tracking.dir).is_file()]
    runs = kept[:top]
    if len(runs) < 2:
        raise TrackingError(
            f"sweep {sweep.name} has {len(runs)} complete trials with checkpoints: an ensemble needs two"
        )
    passed_over = [one for one in extreme[: extreme.index(runs[-1])] if one not in kept]
    told = f"; {len(passed_over)} better ones kept no checkpoint" if passed_over else ""
    show(f"sweep {sweep.name}: its {len(runs)} best of {len(complete)} complete trials{told}")
    return runs


def _score(logits_NK: np.ndarray, labels_N: np.ndarray, metric: str) -> float:
    return split_metrics(logits_NK, labels_N)[metric.removeprefix("val/")]


# ── the work ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Work:
    """One call of `combine`."""

    tracking: TrackingConfig
    store: RunStore
    candidates: list[Candidate]  # best first
    sweep: RecordedSweep | None
    named: str  # as a command would name them
    greedy: bool
    soup: bool
    show: Show

    @property
    def kind(self) -> str:
        return "soup" if self.soup else "ensemble"

    @property
    def monitor(self) -> MonitorConfig:
        return _monitor_of(self.candidates)

    @property
    def question(self) -> str:
        """A digest of what is asked, by which the same question is recognised."""
        models = [(one.run.run_id, one.checkpoint.epoch, one.checkpoint.score) for one in self.candidates]
        asked = f"{self.kind} {self.greedy} {self.monitor.metric} {models}"
        return hashlib.sha256(asked.encode()).hexdigest()

    def check(self) -> None:
        """Refuse candidates that cannot be combined."""
        check_same_images({one.label: one.predictions for one in self.candidates})
        if self.soup:
            from harness.training.commands.soup import check_alike

            check_alike({one.label: one.checkpoint for one in self.candidates})

    def recorded(self) -> Combined | None:
        """Return what an earlier call with the same question has found, if there was one."""
        runs = search_runs(self.tracking, f"tags.`{names.COMBINES}` = '{self.question}'")
        done = [run for run in runs if run.status == "FINISHED"]
        if not done:
            return None
        content: dict[str, Any] = json.loads(read_artifact(self.tracking, done[-1], RESULT))
        content["members"] = tuple(Member(**one) for one in content["members"])
        content["val_gain"] = Gain(**content["val_gain"])
        content["test_gain"] = Gain(**content["test_gain"]) if content["test_gain"] else None
        return Combined(**{**content, "notes": tuple(content["notes"]), "is_new": False})

    def make(self) -> Combined:
        """Choose the members, evaluate the whole on the validation images, and record it."""
        prepare_process(None, self.candidates[0].checkpoint.config.trainer.keep_memory)
        best, of_sweep = self.candidates[0], self.sweep
        name = f"{self.kind}-{'greedy-' * self.greedy}{of_sweep.name if of_sweep else len(self.candidates)}"
        tags = {names.KIND: self.kind, names.COMBINES: self.question}
        if of_sweep is not None:
            tags[names.SWEEP] = of_sweep.name
        parent = None if of_sweep is None else of_sweep.parent.run_id
        experiment = self.store.client.get_experiment(best.run.experiment_id).name
        tracker = self.store.start_run(name, experiment, tags, parent_run_id=parent)
        try:
            found = self._make(tracker, name)
        except BaseException:
            tracker.finish("FAILED")
            raise
        tracker.finish("FINISHED")
        return found

    def _make(self, tracker: Tracker, name: str) -> Combined:
        best = self.candidates[0]
        if self.soup:
            from harness.training.commands.soup import make_soup

            folder = Path(self.tracking.dir) / "checkpoints" / tracker.run_id
            made = make_soup(
                [one.checkpoint for one in self.candidates],
                folder,
                best.score(self.monitor.metric),
                self.monitor,
                greedy=self.greedy,
                show=self.show,
            )
            weights, logits, path, notes = made.weights, made.logits, str(made.path), list(made.notes)
            tracker.set_tags({names.CHECKPOINT: recorded_path(made.path, self.tracking.dir)})
            tracker.log_summary({names.BEST_EPOCH: best.checkpoint.epoch})  # as its checkpoint says
        else:
            weights, logits = self._average()
            path, notes = None, []
        evaluation = evaluate(self._as_predictions(logits, best.predictions))
        notes += self._notes(weights, evaluation)
        members = tuple(
            Member(
                one.run.run_id,
                one.label,
                weight / sum(weights),
                one.score(self.monitor.metric),
                str(one.path),
            )
            for one, weight in zip(self.candidates, weights, strict=True)
        )
        found = Combined(
            run_id=tracker.run_id,
            name=name,
            kind=self.kind,
            is_greedy=self.greedy,
            sweep=None if self.sweep is None else self.sweep.name,
            metric=self.monitor.metric,
            members=members,
            metrics=evaluation.named(),
            val_gain=compare_with(evaluation.predictions, best.predictions, best.label),
            checkpoint=path,
            notes=tuple(notes),
        )
        told = {one.run_id: one.weight for one in members}
        tracker.log_params({self.kind: {"greedy": self.greedy, "metric": found.metric, "members": told}})
        record_evaluation(tracker, evaluation)
        look_closely(tracker, evaluation)
        self._record(tracker, found)
        return found

    def _average(self) -> tuple[list[float], np.ndarray]:
        logits = [one.predictions.logits for one in self.candidates]
        weights = [1.0] * len(logits)
        if self.greedy:
            labels = self.candidates[0].predictions.labels
            counts = select_greedily(
                logits, lambda logs: _score(logs, labels, self.monitor.metric), self.monitor
            )
            weights = [float(count) for count in counts]
        return weights, mean_probabilities(logits, weights)

    def _as_predictions(self, logits_NK: np.ndarray, like: Predictions) -> Predictions:
        return predictions_of(
            logits_NK,
            like.labels,
            split=like.split,
            class_names=like.class_names,
            digest=like.digest,
            index_N=like.index,
        )

    def _notes(self, weights: Sequence[float], evaluation: Evaluation) -> list[str]:
        of_sweep = (
            [] if self.sweep is None else [f"the candidates among the trials of sweep {self.sweep.name}"]
        )
        chosen = [*of_sweep, *(["the members"] if self.greedy else []), "the epochs of all"]
        notes = [
            f"{', '.join(chosen)} were chosen on these validation images: both accuracies there are too high "
            "on average, and their difference is not free of that choice; --test decides"
        ]
        if sum(weight > 0 for weight in weights) == 1:
            notes.append("greedy selection kept one model: this is that model")
        views = {one.checkpoint.config.evaluation.tta for one in self.candidates}
        if views != {"none"}:
            notes.append(
                f"the candidates answer with evaluation.tta={', '.join(sorted(views))}: the accuracy of the "
                "whole without it is not measured"
            )
        return [*notes, *evaluation.notes]

    def _record(self, tracker: Tracker, found: Combined) -> None:
        tracker.log_dict({**asdict(found), "is_new": True}, RESULT)
        tracker.set_tags({names.NOTE: f"```\n{found}\n```"})

    # ── the test split ────────────────────────────────────────────────────────────────────────────

    def test(self, found: Combined, option: str) -> Combined:
        """Read the test split, which is noted before, and record what the whole is worth there."""
        owner = found.run_id if self.sweep is None else self.sweep.parent.run_id
        tags = self.store.tags_of(owner)
        flags = f"{'--greedy ' * self.greedy}{'--soup ' * self.soup}{option}"
        note_reading(self.store, tags, owner, found.run_id, f"harness ensemble {self.named} {flags}")
        best = self.candidates[0]
        arrays, best_logits = predict_split(best.checkpoint, "test")
        if found.checkpoint is not None:
            logits = predict_split(load_checkpoint(found.checkpoint), "test")[1]
        else:
            by_run = {one.run.run_id: one for one in self.candidates}
            chosen = [one for one in found.members if one.weight]
            answers = [
                best_logits
                if by_run[one.run_id] is best
                else predict_split(by_run[one.run_id].checkpoint, "test")[1]
                for one in chosen
            ]
            logits = mean_probabilities(answers, [one.weight for one in chosen])
        like = predictions_of(
            best_logits,
            arrays.labels,
            split="test",
            class_names=best.checkpoint.class_names,
            digest=arrays.digest,
            index_N=arrays.indices,
        )
        temperature = found.metrics.get("val/temperature")
        evaluation = evaluate(self._as_predictions(logits, like), temperature)
        tracker = self.store.reopen_run(found.run_id)
        record_evaluation(tracker, evaluation)
        look_closely(tracker, evaluation)
        found = replace(
            found,
            metrics={**found.metrics, **evaluation.named()},
            test_gain=compare_with(evaluation.predictions, like, best.label),
            reading=count_readings(tags) + 1,
            is_new=True,
        )
        self._record(tracker, found)
        tracker.finish("FINISHED")
        return found
