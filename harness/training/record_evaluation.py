"""Records an evaluation with its run: numbers, predictions, tables and pictures, below a folder of its split.

`record.py` (after training) and `evaluate.py` (`harness evaluate`, a sweep's best trial) call it:
`record_evaluation` for every run, `look_closely` where somebody will look at this run in particular.

    predictions/val.npz    the predictions, image by image (harness.analysis.predictions)
    val/summary.md         every number, the weakest classes, the most confused pairs, notes
    val/classes.csv        per class: precision, recall, F1, images, AUC, average precision
    val/confused.csv       every pair of classes that were mistaken
    val/confusion.png      counts; with up to 100 classes val/confusion.json too
    val/labels.csv, thresholds.json   of multi-label runs, in place of classes.csv, confused.csv, confusion.*
    and by `look_closely`: confusion_percent.png, confusion.html, confused.png, roc.png,
    precision_recall.png, reliability.png
"""

from __future__ import annotations

import math
from collections.abc import Container

import numpy as np

from harness.analysis.evaluation import LONG_NAMES, OF_TEMPERATURE, Evaluation, summary
from harness.analysis.figures import MOST_DRAWN, MOST_NUMBERED, confusion_matrix_figure
from harness.analysis.metrics import confusion_matrix_counts
from harness.analysis.multilabel import MultiLabelEvaluation, labels_summary, labels_to_bytes
from harness.analysis.predictions import to_bytes
from harness.files import as_csv
from harness.tracking import Tracker, names

MOST_IN_JSON = 100  # classes; the matrix of more is large, and confused.csv and classes.csv hold its counts


def record_evaluation(
    tracker: Tracker, evaluation: Evaluation | MultiLabelEvaluation, known: Container[str] = ()
) -> None:
    """Record the metrics, the predictions, the tables and, of one class per image, the confusion matrix.

    Validation metrics are recorded as `best/...`, because the evaluated checkpoint is the best epoch's.

    Args:
        known: names of metrics that the run has already ("val/accuracy"); these are not recorded again.
    """
    if isinstance(evaluation, MultiLabelEvaluation):
        _record_labels(tracker, evaluation, known)
        return
    split, class_names = evaluation.split, evaluation.predictions.class_names
    prefix = names.BEST if split == "val" else ""
    withdrawn = {f"{split}/{name}": math.nan for name in OF_TEMPERATURE}  # unless there is a new value
    named = {**withdrawn, **evaluation.named()}
    metrics = {prefix + key: value for key, value in named.items() if key not in known}
    tracker.log_summary(metrics, replaces=split != "val")
    tracker.log_bytes(to_bytes(evaluation.predictions), names.PREDICTIONS.format(split=split))
    tracker.log_text(summary(evaluation), f"{split}/summary.md")
    tracker.log_text(as_csv(evaluation.per_class), f"{split}/classes.csv")
    header = "true,predicted,images,share_of_true\n"
    tracker.log_text(as_csv(evaluation.confused) if evaluation.confused else header, f"{split}/confused.csv")
    if len(class_names) <= MOST_DRAWN:
        counts_KK = _counts(evaluation)
        tracker.log_figure(confusion_matrix_figure(counts_KK, class_names), f"{split}/confusion.png")
        if len(class_names) <= MOST_IN_JSON:
            content = {"classes": list(class_names), "rows_are": "true", "counts": counts_KK.tolist()}
            tracker.log_dict(content, f"{split}/confusion.json")


def _record_labels(tracker: Tracker, evaluation: MultiLabelEvaluation, known: Container[str]) -> None:
    split = evaluation.split
    prefix = names.BEST if split == "val" else ""
    metrics = {prefix + key: value for key, value in evaluation.named().items() if key not in known}
    tracker.log_summary(metrics, replaces=split != "val")
    tracker.log_bytes(labels_to_bytes(evaluation.predictions), names.PREDICTIONS.format(split=split))
    tracker.log_text(labels_summary(evaluation), f"{split}/summary.md")
    tracker.log_text(as_csv(evaluation.per_class), f"{split}/labels.csv")
    if split == "val":
        thresholds = evaluation.thresholds.tolist()
        tracker.log_dict(
            dict(zip(evaluation.predictions.class_names, thresholds, strict=True)), names.THRESHOLDS
        )


def look_closely(tracker: Tracker, evaluation: Evaluation | MultiLabelEvaluation) -> None:
    """Record the pictures that take seconds, or much room.

    They are drawn after `harness train`, by `harness evaluate`, and for a sweep's best trial.
    """
    from harness.analysis import curves
    from harness.analysis.confusion_page import confusion_page

    split, class_names = evaluation.split, evaluation.predictions.class_names
    tracker.log_figure(curves.roc_figure(evaluation), f"{split}/roc.png")
    tracker.log_figure(curves.precision_recall_figure(evaluation), f"{split}/precision_recall.png")
    if isinstance(evaluation, MultiLabelEvaluation):
        figure = curves.answers_reliability_figure(evaluation)
        tracker.log_figure(figure, f"{split}/reliability.png")
        return
    tracker.log_figure(curves.reliability_figure(evaluation), f"{split}/reliability.png")
    tracker.log_figure(curves.confused_figure(evaluation), f"{split}/confused.png")
    if len(class_names) <= MOST_DRAWN:
        counts_KK = _counts(evaluation)
        title = f"{LONG_NAMES.get(split, split)}, {len(evaluation.predictions):,} images: confusion matrix"
        page = confusion_page(counts_KK, class_names, title)
        tracker.log_text(page, f"{split}/confusion.html")
        if len(class_names) <= MOST_NUMBERED:  # without numbers it would be the same picture
            shares = confusion_matrix_figure(counts_KK, class_names, "% of the true class", in_percent=True)
            tracker.log_figure(shares, f"{split}/confusion_percent.png")


def _counts(evaluation: Evaluation) -> np.ndarray:
    predictions = evaluation.predictions
    return confusion_matrix_counts(predictions.predicted, predictions.labels, len(predictions.class_names))
