"""Multi-label metrics against torchmetrics, thresholds by trying all, and what an evaluation says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import f1_score
from torchmetrics.functional import classification as reference

from harness.analysis.curves import answers_reliability_figure, precision_recall_figure
from harness.analysis.multilabel import (
    evaluate_labels,
    labels_summary,
    labels_to_bytes,
    multilabel_predictions,
)
from harness.analysis.multilabel_metrics import choose_thresholds, multilabel_metrics
from harness.analysis.predictions import from_bytes
from harness.errors import DivergedError, TrackingError
from harness.tracking.scoring import Scorer

RNG = np.random.default_rng(0)
TARGETS = (RNG.random((60, 4)) < (0.5, 0.3, 0.2, 0.1)).astype(np.float32)
LOGITS = (2 * RNG.normal(size=(60, 4)) + 2 * TARGETS - 1).astype(np.float32)


def test_the_metrics_are_torchmetrics_and_torchs() -> None:
    found = multilabel_metrics(LOGITS, TARGETS)
    scores, labels = torch.from_numpy(expit(LOGITS.astype(np.float64))), torch.from_numpy(TARGETS).long()
    expected = {
        "mAP": reference.multilabel_average_precision(scores, labels, 4, average="macro"),
        "auc": reference.multilabel_auroc(scores, labels, 4, average="macro"),
        "f1": reference.multilabel_f1_score(scores, labels, 4, average="macro"),
        "micro_f1": reference.multilabel_f1_score(scores, labels, 4, average="micro"),
        "precision": reference.multilabel_precision(scores, labels, 4, average="macro"),
        "recall": reference.multilabel_recall(scores, labels, 4, average="macro"),
        "exact_match": reference.multilabel_exact_match(scores, labels, 4),
        "loss": torch.nn.functional.binary_cross_entropy(scores, labels.double()),
    }
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-6)


def test_a_label_without_images_is_left_out_of_the_means() -> None:
    absent = TARGETS.copy()
    absent[:, 1] = 0
    rest = [0, 2, 3]
    whole, part = multilabel_metrics(LOGITS, absent), multilabel_metrics(LOGITS[:, rest], TARGETS[:, rest])
    for name in ("mAP", "auc", "f1", "precision", "recall"):
        assert whole[name] == pytest.approx(part[name]), name
    evaluation = evaluate_labels(multilabel_predictions(LOGITS, absent, split="test", class_names="abcd"))
    assert "1 of 4 labels have no image here" in "".join(evaluation.notes)
    assert evaluation.per_class[1]["average_precision"] is None


def test_the_thresholds_give_the_highest_f1_that_any_gives() -> None:
    probabilities, targets = expit(LOGITS[:25, :2].astype(np.float64)), TARGETS[:25, :2]
    thresholds = choose_thresholds(probabilities, targets)
    for k in range(2):
        tried = [0.0, *np.sort(probabilities[:, k])]
        best = max(f1_score(targets[:, k], probabilities[:, k] > one, zero_division=0) for one in tried)
        assert f1_score(targets[:, k], probabilities[:, k] > thresholds[k]) == pytest.approx(best)


def test_test_images_are_measured_at_the_thresholds_of_validation() -> None:
    val = evaluate_labels(multilabel_predictions(LOGITS, TARGETS, split="val", class_names="abcd"))
    test = evaluate_labels(
        multilabel_predictions(LOGITS[::-1] / 2, TARGETS, split="test", class_names="abcd"), val.thresholds
    )
    decided = expit(LOGITS[::-1] / 2) > val.thresholds
    assert test.metrics["f1_at_thresholds"] == pytest.approx(f1_score(TARGETS, decided, average="macro"))
    assert test.per_class[0]["f1"] == pytest.approx(f1_score(TARGETS[:, 0], decided[:, 0]))
    assert "chosen on these same images" in labels_summary(val)
    fewest = int(TARGETS.sum(axis=0).min())
    assert f"the threshold of a label rests on {fewest} images" in labels_summary(val)
    assert "chosen on the validation images" in labels_summary(test)
    alone = evaluate_labels(multilabel_predictions(LOGITS, TARGETS, split="test", class_names="abcd"))
    assert "f1_at_thresholds" not in alone.metrics
    assert "Every threshold is 0.5" in labels_summary(alone)


def test_the_calibration_error_is_torchmetrics_over_all_answers() -> None:
    found = evaluate_labels(multilabel_predictions(LOGITS, TARGETS, split="val", class_names="abcd")).metrics
    scores, labels = torch.from_numpy(expit(LOGITS)).ravel(), torch.from_numpy(TARGETS).ravel().long()
    expected = reference.binary_calibration_error(scores, labels, n_bins=15, norm="l1")
    assert found["ece"] == pytest.approx(float(expected), abs=1e-6)


def test_figures_are_drawn_and_predictions_are_not_taken_for_those_of_classes() -> None:
    evaluation = evaluate_labels(multilabel_predictions(LOGITS, TARGETS, split="val", class_names="abcd"))
    legend = precision_recall_figure(evaluation).axes[0].get_legend()
    assert legend is not None
    assert "mean of 4 labels" in legend.get_texts()[-1].get_text()
    assert answers_reliability_figure(evaluation).axes
    with pytest.raises(TrackingError, match="multi-label predictions, which are not compared"):
        from_bytes(labels_to_bytes(evaluation.predictions), "val.npz")
    with pytest.raises(DivergedError):
        multilabel_predictions(LOGITS * np.inf, TARGETS, split="val", class_names="abcd")


def test_mlflow_scores_labels_by_sigmoids() -> None:
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    images = RNG.integers(0, 256, (5, 2, 2, 3), dtype=np.uint8)

    class Model(torch.nn.Module):
        def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
            return head(images_BCHW.float() / 255)

    logits = Model()(torch.from_numpy(images).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(Scorer(Model(), is_multilabel=True).predict(images), expit(logits), rtol=1e-5)
    assert Scorer(Model()).predict(images).sum(axis=1) == pytest.approx(1.0)
