"""`Evaluation`: everything that is measured of a model's predictions on one split, and its summary.

`harness.training.evaluate` makes it from `Predictions` and records it. The figures of `curves.py` and
`confusion_page.py` show it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax

from harness.analysis.calibration import calibration_metrics, fit_temperature
from harness.analysis.layout import cell, markdown_table
from harness.analysis.metrics import (
    classification_metrics,
    further_metrics,
    one_vs_rest_areas,
    per_class_table,
)
from harness.analysis.predictions import Predictions

FEW = 10  # rows of the summary's tables
CALIBRATION = ("loss", "brier", "ece")  # given before and after temperature scaling
OF_TEMPERATURE = (
    "temperature",
    *(f"{name}_calibrated" for name in CALIBRATION),
)  # none without a temperature
LONG_NAMES = {"val": "Validation", "test": "Test", "oof": "Out of fold"}
FITTED_HERE = "fitted on these same images, so the calibrated figures are optimistic"
FITTED_ON_VALIDATION = "fitted on the validation images"


@dataclass(frozen=True)
class Evaluation:
    """What is measured of a model's predictions on one split.

    Args:
        metrics: by name, without the split's ("accuracy", "f1", …); each is defined and finite.
        per_class: see `per_class_table`.
        confused: the pairs of classes that were mistaken, most images first.
        temperature: that the logits are divided by for the metrics "…_calibrated"; None if there is none.
        notes: what was not measured, and why, and what to bear in mind, one line each.
    """

    predictions: Predictions
    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    confused: list[dict[str, Any]]
    temperature: float | None
    notes: tuple[str, ...]

    @property
    def split(self) -> str:
        return self.predictions.split

    @property
    def calibrated_probabilities(self) -> np.ndarray:
        """The probabilities after temperature scaling, float64 (N, K); those before it if there is no T."""
        logits = self.predictions.logits.astype(np.float64) / (self.temperature or 1.0)
        return np.asarray(np.exp(log_softmax(logits, axis=1)))

    def named(self) -> dict[str, float]:
        """Return the metrics named after the split: `val/accuracy`, …"""
        return {f"{self.split}/{name}": value for name, value in self.metrics.items()}


def evaluate(predictions: Predictions, temperature: float | None = None) -> Evaluation:
    """Measure predictions.

    Args:
        temperature: fitted on the validation images. On the validation split itself it is fitted here, if it
            is None.
    """
    notes = []
    labels_N = predictions.labels
    log_probabilities_NK = predictions.log_probabilities
    probabilities_NK = np.exp(log_probabilities_NK)
    areas = one_vs_rest_areas(probabilities_NK, labels_N)
    metrics = {
        **classification_metrics(probabilities_NK, labels_N),
        **calibration_metrics(log_probabilities_NK, labels_N),
        **further_metrics(probabilities_NK, labels_N, areas),
    }
    if math.isnan(metrics["auc"]):
        notes.append("no ROC AUC: all images are of one class")
    if absent := len(predictions.class_names) - len(np.unique(labels_N)):
        notes.append(
            f"{absent} of {len(predictions.class_names)} classes have no image here; they have no AUC and no "
            "average precision, and the means are over the others"
        )
    if temperature is None and predictions.split == "val":
        temperature = fit_temperature(predictions.logits, labels_N)
        missing = "no temperature between 0.05 and 20 gives the lowest loss on these images"
    else:
        missing = "no temperature of this run is known from its validation images"
    if temperature is None:
        notes.append(f"no calibrated figures: {missing}")
    else:
        scaled = log_softmax(predictions.logits.astype(np.float64) / temperature, axis=1)
        after = calibration_metrics(scaled, labels_N)
        metrics |= {"temperature": temperature, **{f"{name}_calibrated": v for name, v in after.items()}}
    return Evaluation(
        predictions=predictions,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        per_class=per_class_table(predictions.predicted, labels_N, predictions.class_names, areas),
        confused=confused_pairs(predictions),
        temperature=temperature,
        notes=tuple(notes),
    )


def confused_pairs(predictions: Predictions) -> list[dict[str, Any]]:
    """Return how often each class was taken for each other one, most images first; never is left out.

    The keys of a row are true, predicted, images, share_of_true.
    """
    num_classes, names = len(predictions.class_names), predictions.class_names
    sizes = np.bincount(predictions.labels, minlength=num_classes)
    wrong = ~predictions.correct
    pairs, counts = np.unique(
        predictions.labels[wrong] * num_classes + predictions.predicted[wrong], return_counts=True
    )
    order = np.lexsort((-counts / sizes[pairs // num_classes], -counts))
    return [
        {
            "true": names[pair // num_classes],
            "predicted": names[pair % num_classes],
            "images": int(count),
            "share_of_true": float(count / sizes[pair // num_classes]),
        }
        for pair, count in zip(pairs[order].tolist(), counts[order], strict=True)
    ]


def summary(evaluation: Evaluation) -> str:
    """Return an evaluation as Markdown: metrics, calibration, weakest classes, confused pairs, notes."""
    metrics = evaluation.metrics
    predictions = evaluation.predictions
    title = LONG_NAMES.get(evaluation.split, evaluation.split)
    count, right = len(predictions), int(predictions.correct.sum())
    lines = [f"# {title}: {right:,} of {count:,} images right ({right / count:.2%})", ""]
    plain = {
        name: value for name, value in metrics.items() if not name.endswith(("_calibrated", "temperature"))
    }
    lines.append(
        markdown_table(("metric", "value"), [(name, f"{value:.4f}") for name, value in plain.items()])
    )
    lines += ["`loss` is the negative log-likelihood in nats. Precision, recall, F1, AUC and average "]
    lines[-1] += "precision are means over the classes unless they are called weighted.\n"
    if evaluation.temperature is not None:
        where = FITTED_HERE if evaluation.split == "val" else FITTED_ON_VALIDATION
        lines += ["## Calibration", "", f"Temperature {evaluation.temperature:.3f}, {where}.", ""]
        rows = [
            (name, f"{metrics[name]:.4f}", f"{metrics[f'{name}_calibrated']:.4f}") for name in CALIBRATION
        ]
        lines.append(markdown_table(("", "before", "after"), rows))
    weakest = sorted((row for row in evaluation.per_class if row["support"]), key=lambda row: row["f1"])
    shown = [
        (
            cell(row["class"]),
            f"{row['support']:,}",
            *(f"{row[name]:.3f}" for name in ("precision", "recall", "f1")),
        )
        for row in weakest[:FEW]
    ]
    lines += [f"## Weakest classes ({len(shown)} of {len(evaluation.per_class)})", ""]
    lines.append(markdown_table(("class", "images", "precision", "recall", "F1"), shown))
    if evaluation.confused:
        pairs = [
            (cell(row["true"]), cell(row["predicted"]), f"{row['images']:,}", f"{row['share_of_true']:.1%}")
            for row in evaluation.confused[:FEW]
        ]
        lines += [f"## Most confused pairs ({len(pairs)} of {len(evaluation.confused)})", ""]
        lines.append(markdown_table(("true", "taken for", "images", "share of the true class"), pairs))
    if evaluation.notes:
        lines += ["## Notes", "", *(f"- {line}" for line in evaluation.notes)]
    return "\n".join(lines) + "\n"
