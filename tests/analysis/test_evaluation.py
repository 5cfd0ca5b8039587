"""Every measure against scikit-learn, torchmetrics or a case worked by hand, degenerate cases included."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from torch.nn import functional as F
from torchmetrics.functional import classification as torch_reference

from harness.analysis.calibration import calibration_error, fit_temperature, reliability_bins
from harness.analysis.evaluation import Evaluation, confused_pairs, evaluate, summary
from harness.analysis.predictions import Predictions, predictions_of
from harness.errors import DivergedError


def predicted(logits: np.ndarray, labels: np.ndarray, split: str = "val") -> Predictions:
    names = [f"class {number}" for number in range(logits.shape[1])]
    return predictions_of(np.asarray(logits, float), np.asarray(labels), split=split, class_names=names)


def random_predictions(seed: int, num_classes: int, count: int) -> Predictions:
    """Return predictions better than chance; some classes have no image, and some are never predicted."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, count)
    logits = rng.normal(size=(count, num_classes)) * 2
    logits[np.arange(count), labels] += 1.5
    logits[:, rng.integers(num_classes)] -= rng.choice([0, 20])
    return predicted(logits, labels)


def evaluated(predictions: Predictions) -> Evaluation:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing undefined is computed on the way
        return evaluate(predictions)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), num_classes=st.integers(2, 9), count=st.integers(1, 60))
def test_all_measures_are_those_of_scikit_learn_and_torchmetrics(
    seed: int, num_classes: int, count: int
) -> None:
    predictions = random_predictions(seed, num_classes, count)
    labels, answers = predictions.labels, predictions.predicted
    probabilities = np.exp(predictions.log_probabilities)
    metrics = evaluated(predictions).metrics
    present = np.unique(labels)
    weighted = reference.precision_recall_fscore_support(labels, answers, average="weighted", zero_division=0)
    macro = reference.precision_recall_fscore_support(labels, answers, average="macro", zero_division=0)
    expected = {
        "accuracy": reference.accuracy_score(labels, answers),
        "precision": macro[0],
        "recall": macro[1],
        "f1": macro[2],
        "precision_weighted": weighted[0],
        "recall_weighted": weighted[1],
        "f1_weighted": weighted[2],
        "average_precision": np.mean(
            [reference.average_precision_score(labels == k, probabilities[:, k]) for k in present]
        ),
        "loss": reference.log_loss(labels, probabilities, labels=range(num_classes)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "y_pred contains classes not in y_true"
        expected["balanced_accuracy"] = reference.balanced_accuracy_score(labels, answers)
    if len(present) > 1:
        expected["auc"] = np.mean(
            [reference.roc_auc_score(labels == k, probabilities[:, k]) for k in present]
        )
    if num_classes > 2:
        expected["brier"] = ((probabilities - np.eye(num_classes)[labels]) ** 2).sum(axis=1).mean()
    else:
        expected["brier"] = reference.brier_score_loss(labels, probabilities[:, 1], labels=[0, 1])
    if num_classes > 5:
        expected["top5_accuracy"] = reference.top_k_accuracy_score(
            labels, probabilities, k=5, labels=range(num_classes)
        )
        theirs = torch_reference.multiclass_accuracy(
            torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes, average="micro", top_k=5
        )
        assert float(theirs) == pytest.approx(expected["top5_accuracy"])
    else:
        assert "top5_accuracy" not in metrics
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-6), name
    assert ("auc" in metrics) == (len(present) > 1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), num_classes=st.integers(2, 9), count=st.integers(1, 200))
def test_the_calibration_error_is_torchmetrics_and_that_of_the_drawn_bins(
    seed: int, num_classes: int, count: int
) -> None:
    predictions = random_predictions(seed, num_classes, count)
    probabilities = np.exp(predictions.log_probabilities)
    ours = calibration_error(probabilities, predictions.labels)
    theirs = torch_reference.multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(predictions.labels), num_classes, 15
    )
    assert ours == pytest.approx(float(theirs), abs=1e-5)
    bins = reliability_bins(probabilities, predictions.labels)
    gaps = np.nan_to_num(np.abs(bins.accuracy - bins.confidence))
    assert (gaps * bins.counts).sum() / count == pytest.approx(ours, abs=1e-5)
    assert bins.counts.sum() == count


def test_a_confidence_of_one_belongs_to_the_last_bin() -> None:
    # Two images in [14/15, 1]: one of confidence 0.95 is right, one of 1 is wrong. Accuracy 0.5, confidence
    # 0.975. In a bin of its own, as in torchmetrics, the second would make it (0.05 + 1) / 2.
    probabilities = np.array([[0.95, 0.05], [1.0, 0.0]])
    assert calibration_error(probabilities, np.array([0, 1])) == pytest.approx(0.475, abs=1e-6)
    assert reliability_bins(probabilities, np.array([0, 1])).counts[-1] == 2


def test_calibration_by_hand() -> None:
    # Ten images that are 80 % sure, of which 6 are right.
    probabilities = np.tile([0.8, 0.2], (10, 1))
    labels = np.array([0] * 6 + [1] * 4)
    metrics = evaluated(predicted(np.log(probabilities), labels)).metrics
    assert metrics["ece"] == pytest.approx(0.2, abs=1e-6)
    assert metrics["brier"] == pytest.approx(0.6 * 0.2**2 + 0.4 * 0.8**2)
    # The best T makes them 60 % sure: log(0.8/0.2) / T = log(0.6/0.4).
    assert metrics["temperature"] == pytest.approx(math.log(4) / math.log(1.5), rel=1e-3)
    assert metrics["ece_calibrated"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["loss_calibrated"] == pytest.approx(-0.6 * math.log(0.6) - 0.4 * math.log(0.4))


@pytest.mark.parametrize("num_classes", [2, 10])
def test_the_temperature_is_that_of_lbfgs(num_classes: int) -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, num_classes, 400)
    predictions = predicted(3 * rng.normal(size=(400, num_classes)) + 4 * np.eye(num_classes)[truth], truth)
    logits, labels = torch.from_numpy(predictions.logits).double(), torch.from_numpy(predictions.labels)
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    ours = fit_temperature(predictions.logits, predictions.labels)
    assert ours == pytest.approx(log_temperature.exp().item(), rel=1e-4)


@pytest.mark.parametrize("logits", [np.eye(3) * 5, np.zeros((3, 3)), -np.eye(3) * 5])
def test_where_no_temperature_is_best_none_is_used(logits: np.ndarray) -> None:
    """Every image is right (T → 0), nothing depends on T, every image is wrong (T → ∞)."""
    evaluation = evaluated(predicted(logits, np.arange(3)))
    assert evaluation.temperature is None
    assert not [name for name in evaluation.metrics if "calibrated" in name or name == "temperature"]
    assert "no temperature" in summary(evaluation)


def test_the_test_split_takes_the_temperature_of_validation() -> None:
    predictions = random_predictions(1, 4, 50)
    of_test = Predictions(**{**vars(predictions), "split": "test"})
    assert evaluate(of_test).temperature is None, "it is never fitted on test images"
    assert "no temperature of this run is known" in summary(evaluate(of_test))
    scaled = evaluate(of_test, temperature=2.0)
    expected = F.cross_entropy(torch.from_numpy(predictions.logits) / 2, torch.from_numpy(predictions.labels))
    assert scaled.metrics["loss_calibrated"] == pytest.approx(float(expected), rel=1e-5)
    assert "fitted on the validation images" in summary(scaled)
    assert "fitted on these same images" in summary(evaluate(predictions))


def test_of_equal_logits_the_lower_classes_come_first_as_in_the_accuracy() -> None:
    tied = np.zeros((7, 7))
    metrics = evaluated(predicted(tied, np.arange(7))).metrics
    assert metrics["accuracy"] == pytest.approx(1 / 7)
    assert metrics["top5_accuracy"] == pytest.approx(5 / 7)
    assert metrics["auc"] == pytest.approx(0.5)
    assert metrics["average_precision"] == pytest.approx(1 / 7)


def test_one_class_only_has_no_auc_and_says_why() -> None:
    evaluation = evaluated(predicted(np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), np.array([0, 0])))
    assert "auc" not in evaluation.metrics
    assert evaluation.metrics["average_precision"] == 1.0
    assert evaluation.metrics["balanced_accuracy"] == 0.5
    assert "all images are of one class" in summary(evaluation)
    assert "2 of 3 classes have no image here" in summary(evaluation)
    assert [row["auc"] for row in evaluation.per_class] == [None, None, None]
    assert [row["average_precision"] for row in evaluation.per_class] == [1.0, None, None]


def test_a_class_that_is_never_predicted_counts_as_nothing_found() -> None:
    evaluation = evaluated(predicted(np.tile([1.0, 0.0, -9.0], (4, 1)), np.array([0, 0, 1, 2])))
    row = evaluation.per_class[2]
    assert (row["precision"], row["recall"], row["f1"], row["support"]) == (0.0, 0.0, 0.0, 1)
    assert evaluation.metrics["balanced_accuracy"] == pytest.approx(1 / 3)


def test_confused_pairs_by_hand() -> None:
    answers = np.array([1, 1, 2, 0, 0, 0, 1])
    rows = confused_pairs(predicted(np.eye(3)[answers], np.array([0, 0, 0, 0, 1, 2, 1])))
    assert [(row["true"], row["predicted"], row["images"]) for row in rows] == [
        ("class 0", "class 1", 2),
        (
            "class 2",
            "class 0",
            1,
        ),  # all of its images; so before the half of class 1 and the quarter of class 0
        ("class 1", "class 0", 1),
        ("class 0", "class 2", 1),
    ]
    assert rows[0]["share_of_true"] == pytest.approx(0.5)
    assert confused_pairs(predicted(np.eye(3), np.arange(3))) == []


def test_the_summary_of_many_classes_stays_short() -> None:
    predictions = random_predictions(1, 300, 600)
    evaluation = evaluated(predictions)
    text = summary(evaluation)
    assert len(text.splitlines()) < 80
    assert len(evaluation.per_class) == 300


def test_class_names_do_not_break_the_summarys_tables() -> None:
    names = ["a|b", "line\nbreak", "<b>"]
    predictions = predictions_of(np.eye(3), np.array([0, 2, 1]), split="val", class_names=names)
    text = summary(evaluate(predictions))
    assert "| a\\|b |" in text
    assert "| line break |" in text
    assert "<b>" not in text


def test_logits_that_are_not_finite_never_become_a_number() -> None:
    with pytest.raises(DivergedError, match="1 of the 2 val images"):
        predicted(np.array([[0.0, np.nan], [1.0, 0.0]]), np.array([0, 1]))
