"""What is measured of multi-label predictions on one split: the counterpart of `evaluation.py`.

`harness.training.evaluate` makes a `MultiLabelEvaluation`, and `record_evaluation.py` records it. Thresholds
are chosen on the validation images alone. There is no confusion matrix, as an answer to one label is not
given instead of another one.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from harness.analysis.layout import cell, markdown_table
from harness.analysis.multilabel_metrics import (
    HALF,
    choose_thresholds,
    decision_metrics,
    label_table,
    multilabel_metrics,
)
from harness.analysis.predictions import KIND_OF_LABELS, VERSION, check_finite

LONG_NAMES = {"val": "Validation", "test": "Test"}
FEW = 20  # images with a label, below which its threshold is said to be uncertain
AT_THRESHOLDS = "_at_thresholds"  # after the name of a metric
NOT_MEASURED = (
    "no confusion matrix, confused pairs, top-5 or temperature: they are of one class per image",
    "no gallery of mistakes, Grad-CAM, map of features or search for label errors: not drawn of such runs",
)


@dataclass(frozen=True)
class MultiLabelPredictions:
    """A model's answers to the images of one split, image by image and label by label.

    Args:
        split: "val", "test", or the name of a folder that was evaluated.
        class_names: of the labels.
        digest: sha256 (hex) of the split's pixels and labels, in their order.
        index: int64 (N,), the row of each image among the images of its source.
        labels: uint8 (N, K), 1 for each label of an image.
        logits: float32 (N, K).
    """

    split: str
    class_names: tuple[str, ...]
    digest: str
    index: np.ndarray
    labels: np.ndarray
    logits: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def probabilities(self) -> np.ndarray:
        """The probability of each label: float64 (N, K)."""
        return np.asarray(expit(self.logits.astype(np.float64)))

    def has(self, k: int) -> np.ndarray:
        """Return which images have a label: bool (N,)."""
        return np.asarray(self.labels[:, k] == 1)


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """What is measured of a model's multi-label predictions on one split.

    Args:
        metrics: by name, without the split's ("mAP", "f1", …); each is defined and finite.
        per_class: a row for each label, see `label_table`.
        thresholds: float64 (K,), of the probability, above which a label is answered yes.
        are_chosen: whether they were chosen on validation images; otherwise each is 0.5.
        notes: what was not measured, and why, and what to bear in mind, one line each.
    """

    predictions: MultiLabelPredictions
    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    thresholds: np.ndarray
    are_chosen: bool
    notes: tuple[str, ...]

    @property
    def split(self) -> str:
        return self.predictions.split

    def named(self) -> dict[str, float]:
        """Return the metrics named after the split: `val/mAP`, …"""
        return {f"{self.split}/{name}": value for name, value in self.metrics.items()}


def multilabel_predictions(
    logits_NK: np.ndarray,
    labels_NK: np.ndarray,
    *,
    split: str,
    class_names: Sequence[str],
    digest: str = "",
    index_N: np.ndarray | None = None,
) -> MultiLabelPredictions:
    """Return the predictions that logits amount to.

    Raises:
        DivergedError: a logit is NaN or infinite.
    """
    check_finite(logits_NK, split)
    return MultiLabelPredictions(
        split=split,
        class_names=tuple(class_names),
        digest=digest,
        index=np.arange(len(labels_NK)) if index_N is None else np.asarray(index_N, dtype=np.int64),
        labels=labels_NK.astype(np.uint8),
        logits=logits_NK.astype(np.float32),
    )


def evaluate_labels(
    predictions: MultiLabelPredictions, thresholds_K: np.ndarray | None = None
) -> MultiLabelEvaluation:
    """Measure multi-label predictions.

    Args:
        thresholds_K: chosen on the validation images. On the validation split itself they are chosen here, if
            they are None; on others, each is then 0.5.
    """
    notes = list(NOT_MEASURED)
    labels_NK, probabilities_NK = predictions.labels, predictions.probabilities
    if absent := int((~labels_NK.any(axis=0)).sum()):
        notes.append(
            f"{absent} of {len(predictions.class_names)} labels have no image here; means over labels are "
            "over the others"
        )
    if thresholds_K is None and predictions.split == "val":
        thresholds_K = choose_thresholds(probabilities_NK, labels_NK)
        if (fewest := int(labels_NK.sum(axis=0).min())) < FEW:
            notes.append(
                f"the threshold of a label rests on {fewest} images that have it: others could move it far"
            )
    are_chosen = thresholds_K is not None
    thresholds_K = np.full(len(predictions.class_names), HALF) if thresholds_K is None else thresholds_K
    metrics = {
        **multilabel_metrics(predictions.logits, labels_NK),
        "brier": float(((probabilities_NK - labels_NK) ** 2).mean()),
        "ece": answers_calibration_error(probabilities_NK, labels_NK),
    }
    if are_chosen:
        at_thresholds = decision_metrics(probabilities_NK > thresholds_K, labels_NK)
        metrics |= {f"{name}{AT_THRESHOLDS}": value for name, value in at_thresholds.items()}
    else:
        notes.append("no thresholds were chosen, as there are no validation images: each is 0.5")
    return MultiLabelEvaluation(
        predictions=predictions,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        per_class=label_table(probabilities_NK, labels_NK, predictions.class_names, thresholds_K),
        thresholds=thresholds_K,
        are_chosen=are_chosen,
        notes=tuple(notes),
    )


def answers_calibration_error(probabilities_NK: np.ndarray, labels_NK: np.ndarray) -> float:
    """Return the expected calibration error over all answers (image by label), within [0, 1].

    It compares in 15 bins the mean probability of yes with the share of yes, as torchmetrics'
    `binary_calibration_error` (l1) does.
    """
    from harness.analysis.calibration import answer_bins

    bins = answer_bins(probabilities_NK, labels_NK)
    filled = bins.counts > 0
    gaps = np.abs(bins.confidence[filled] - bins.accuracy[filled])
    return float((bins.counts[filled] * gaps).sum() / bins.counts.sum())


def labels_to_bytes(predictions: MultiLabelPredictions) -> bytes:
    """Return the predictions as a compressed .npz file.

    Its arrays are `version`, `about` (JSON: kind, split, class_names, digest), `index`, `labels`, `logits`.
    """
    about = {
        "kind": KIND_OF_LABELS,
        "split": predictions.split,
        "class_names": list(predictions.class_names),
        "digest": predictions.digest,
    }
    file = io.BytesIO()
    np.savez_compressed(
        file,
        version=np.int64(VERSION),
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        index=predictions.index,
        labels=predictions.labels,
        logits=predictions.logits,
    )
    return file.getvalue()


def labels_summary(evaluation: MultiLabelEvaluation) -> str:
    """Return an evaluation as Markdown: metrics, each label with its threshold, notes."""
    predictions, metrics = evaluation.predictions, evaluation.metrics
    title = LONG_NAMES.get(evaluation.split, evaluation.split)
    lines = (
        [f"# {title}: mAP {metrics['mAP']:.4f} over {len(predictions):,} images", ""]
        if "mAP" in metrics
        else [f"# {title}: {len(predictions):,} images", ""]
    )
    plain = {name: value for name, value in metrics.items() if not name.endswith(AT_THRESHOLDS)}
    rows = [
        (name, f"{value:.4f}", _or_nothing(metrics.get(f"{name}{AT_THRESHOLDS}")))
        for name, value in plain.items()
    ]
    header = ("metric", "value (answers above 0.5)", "at the chosen thresholds")
    lines.append(markdown_table(header, rows))
    lines += [
        "`loss` is the binary cross entropy in nats, the mean over images and labels. mAP, AUC, precision, "
        "recall and F1 are means over the labels; `micro_f1` counts all answers together, `exact_match` the "
        "images whose labels are all right; `ece` and `brier` are over all answers.\n"
    ]
    lines += [_on_thresholds(evaluation), "", "## Labels", ""]
    shown = [
        (
            cell(row["label"]),
            f"{row['support']:,}",
            _or_nothing(row["average_precision"]),
            f"{row['threshold']:.3f}",
            *(f"{row[name]:.3f}" for name in ("precision", "recall", "f1")),
        )
        for row in evaluation.per_class
    ]
    lines.append(markdown_table(("label", "images", "AP", "threshold", "precision", "recall", "F1"), shown))
    lines += ["## Notes", "", *(f"- {line}" for line in evaluation.notes)]
    return "\n".join(lines) + "\n"


def _on_thresholds(evaluation: MultiLabelEvaluation) -> str:
    if not evaluation.are_chosen:
        return "Every threshold is 0.5."
    if evaluation.split == "val":
        return (
            "The thresholds were chosen on these same images, for the highest F1 of each label, so what is "
            "measured at them here is optimistic."
        )
    return "The thresholds were chosen on the validation images, for the highest F1 of each label."


def _or_nothing(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
