"""Evaluates a model on a split: logits, metrics, confusion matrix, and their record.

`record.py` evaluates a run's best epoch; `harness.search.coordinator.evaluate_best` evaluates a sweep's best
checkpoint on the test split, which this module reads through `harness.data.held_out`. The formulas are in
`harness.analysis.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from harness.analysis.figures import confusion_matrix_figure
from harness.analysis.metrics import confusion_matrix_counts, per_class_table, split_metrics
from harness.analysis.predictions import Predictions, predictions_of, to_bytes
from harness.config.schema import TrackingConfig
from harness.data import load_splits
from harness.data.datamodule import eval_batches
from harness.data.held_out import load_test
from harness.data.splits import ImageArrays
from harness.errors import CheckpointError
from harness.files import as_csv
from harness.models import ImageClassifier
from harness.tracking import Tracker, names
from harness.tracking.choice import ChosenRun, choose
from harness.tracking.readings import count_readings, describe_reading, note_reading
from harness.tracking.runs import RunRecord
from harness.tracking.store import RunStore, open_store
from harness.training.checkpoint import Checkpoint, load_checkpoint, restore_classifier
from harness.training.machine import Machine, machine_at_hand
from harness.training.tta import Tta, predict_logits

Split = Literal["val", "test"]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a model's predictions on one split."""

    split: Split
    predictions: Predictions
    metrics: dict[str, float]  # named "val/accuracy", "val/f1", …
    confusion: np.ndarray  # int64 (K, K), rows are true classes, columns predictions
    per_class: list[dict[str, Any]]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class RunEvaluation:
    """The metrics of a recorded run's checkpoint on a split."""

    run: RunRecord
    checkpoint: Path
    metrics: dict[str, float]  # named "val/accuracy", "val/f1", …
    readings: str | None  # how often the test split was read, in words; None for validation


def evaluate_run(
    tracking: TrackingConfig,
    reference: str | None,
    split: Split,
    show: Callable[[str], None] = lambda line: None,
) -> RunEvaluation:
    """Score the best checkpoint of a recorded run on a split, and record the result with the run.

    Before the test split is read, this is noted in the tags of the run and of its sweep.

    Args:
        reference: a run's id or name, or a sweep's name; None for the best trial of the sweep that ran last.
        show: called before the evaluation with a line that names the run and says why it was chosen.

    Raises:
        TrackingError: there is no such run, or it kept no checkpoint.
        HarnessError: `evaluate_checkpoint` failed.
    """
    choice = choose(tracking, reference)
    show(choice.why)
    store = open_store(tracking)
    tracker = store.reopen_run(choice.run.run_id)
    readings = _note_reading(store, choice) if split == "test" else None
    metrics = evaluate_checkpoint(choice.checkpoint, split=split, tracker=tracker)
    tracker.finish("FINISHED")
    return RunEvaluation(choice.run, choice.checkpoint, metrics, readings)


def _note_reading(store: RunStore, choice: ChosenRun) -> str:
    """Note that the test split is read now, and return how often it has been read, in words."""
    run_id = choice.run.run_id
    ledger = run_id if choice.sweep is None else choice.sweep.parent.run_id
    tags = store.tags_of(ledger)
    note_reading(store, tags, ledger, run_id, f"harness evaluate --run {run_id} --split test")
    number = count_readings(tags) + 1
    return describe_reading(number, number, "run" if choice.sweep is None else "sweep")


def evaluate_checkpoint(path: Path, *, split: Split, tracker: Tracker | None = None) -> dict[str, float]:
    """Evaluate a checkpoint on a split of the data that it was trained on, and record the result.

    Returns:
        Metrics named after the split: `test/accuracy`, `test/precision`, …

    Raises:
        CheckpointError: the checkpoint is damaged, or its data set has changed since.
        DataError: the images cannot be read.
    """
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    arrays = _load_arrays(checkpoint, split)
    classifier = restore_classifier(checkpoint)
    machine = machine_at_hand(config.trainer, classifier.network)
    classifier.to(machine.device)
    logits, plain = predict(classifier, arrays, machine, config.data.batch_size, config.evaluation.tta)
    evaluation = evaluate(logits, arrays, checkpoint.class_names, split)
    if config.evaluation.tta != "none":
        accuracy = float((plain.argmax(1) == arrays.labels).mean())
        evaluation.metrics[f"{split}/accuracy_no_tta"] = accuracy
    if tracker is not None:
        record_evaluation(tracker, evaluation)
    return evaluation.metrics


def _load_arrays(checkpoint: Checkpoint, split: Split) -> ImageArrays:
    splits = load_splits(checkpoint.config.data)
    if splits.digest != checkpoint.data_digest:
        raise CheckpointError(
            f"{checkpoint.path} was trained on {checkpoint.data_name} {checkpoint.data_digest[:12]}, but "
            f"{checkpoint.config.data.dir} now gives {splits.name} {splits.digest[:12]}: put the data back"
        )
    return splits.val if split == "val" else load_test(checkpoint.config.data)


@torch.inference_mode()
def predict(
    classifier: ImageClassifier, arrays: ImageArrays, machine: Machine, batch_size: int, tta: Tta = "none"
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, float32 (N, K) on the CPU: first with test-time augmentation, then without it."""
    classifier.eval()
    averaged, plain = [], []
    for images, _ in eval_batches(arrays, batch_size):
        with machine.autocast():
            logits = predict_logits(classifier, images.to(machine.device, non_blocking=True), tta)
        averaged.append(logits[0].float())
        plain.append(logits[1].float())
    return torch.cat(averaged).cpu().numpy(), torch.cat(plain).cpu().numpy()


def evaluate(
    logits_NK: np.ndarray, arrays: ImageArrays, class_names: tuple[str, ...], split: Split
) -> Evaluation:
    """Return the predictions, the metrics, the confusion matrix and the table of classes of a split.

    Raises:
        DivergedError: a logit is NaN or infinite.
    """
    labels_N = arrays.labels
    predictions = predictions_of(
        logits_NK,
        labels_N,
        split=split,
        class_names=class_names,
        digest=arrays.digest,
        index_N=arrays.indices,
    )
    metrics = split_metrics(logits_NK, labels_N)
    predictions_N = predictions.predicted
    return Evaluation(
        split=split,
        predictions=predictions,
        metrics={f"{split}/{name}": value for name, value in metrics.items()},
        confusion=confusion_matrix_counts(predictions_N, labels_N, len(class_names)),
        per_class=per_class_table(predictions_N, labels_N, class_names),
        class_names=class_names,
    )


def record_evaluation(tracker: Tracker, evaluation: Evaluation, known: Container[str] = ()) -> None:
    """Record metrics, predictions, the confusion matrix as a picture and as JSON, and the table of classes.

    Validation metrics are recorded as `best/...`, because the evaluated checkpoint is the best epoch's.

    Args:
        known: names of metrics that the run has already; these are not recorded again.
    """
    split, class_names = evaluation.split, evaluation.class_names
    prefix = names.BEST if split == "val" else ""
    tracker.log_summary({prefix + key: v for key, v in evaluation.metrics.items() if key not in known})
    tracker.log_bytes(to_bytes(evaluation.predictions), names.PREDICTIONS.format(split=split))
    tracker.log_figure(confusion_matrix_figure(evaluation.confusion, class_names), f"confusion/{split}.png")
    counts = {"classes": list(class_names), "rows_are": "true", "counts": evaluation.confusion.tolist()}
    tracker.log_dict(counts, f"confusion/{split}.json")
    tracker.log_text(as_csv(evaluation.per_class), f"classes/{split}.csv")
