from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from harness.analysis.metrics import classification_metrics, confusion_matrix_counts, per_class_table


def random_case(seed: int, num_classes: int, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and labels in which every class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_images)])
    scores = rng.random((len(labels), num_classes)) + 0.5 * np.eye(num_classes)[labels]
    return scores / scores.sum(axis=1, keepdims=True), labels


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), num_classes=st.integers(3, 12), num_images=st.integers(0, 60))
def test_agrees_with_scikit_learn(seed: int, num_classes: int, num_images: int) -> None:
    probabilities, labels = random_case(seed, num_classes, num_images)
    ours = classification_metrics(probabilities, labels)
    predictions = probabilities.argmax(1)
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        labels, predictions, average="macro", zero_division=0
    )
    theirs = {
        "accuracy": reference.accuracy_score(labels, predictions),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "auc": reference.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
    }
    assert ours == pytest.approx(theirs)


def test_two_classes() -> None:
    labels = np.array([0, 0, 1, 1])
    positive = np.array([0.1, 0.6, 0.35, 0.8])  # 3 of the 4 pairs are in order
    ours = classification_metrics(np.stack([1 - positive, positive], axis=1), labels)
    assert ours["auc"] == pytest.approx(0.75)
    assert ours["accuracy"] == pytest.approx(0.5)


def test_ties_count_half() -> None:
    assert classification_metrics(np.full((4, 2), 0.5), np.array([0, 1, 0, 1]))["auc"] == pytest.approx(0.5)


def test_perfect() -> None:
    labels = np.array([2, 0, 1, 1])
    assert set(classification_metrics(np.eye(3)[labels], labels).values()) == {1.0}


def test_class_that_nobody_names_does_not_count() -> None:
    labels = np.array([0, 1, 1, 0])
    with_absent = classification_metrics(np.eye(5)[labels], labels)
    assert with_absent == classification_metrics(np.eye(2)[labels], labels)


def test_class_that_only_predictions_name_counts_as_a_miss() -> None:
    labels, predictions = np.array([0, 0, 1]), np.array([0, 2, 1])
    ours = classification_metrics(np.eye(3)[predictions], labels)
    assert ours["recall"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert ours["precision"] == pytest.approx((1 + 1 + 0) / 3)


def test_one_class_has_no_auc() -> None:
    ours = classification_metrics(np.eye(3)[[1, 1]], np.array([1, 1]))
    assert np.isnan(ours["auc"])
    assert ours["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.ones((3, 2)), np.array([0, 1]), r"\(N, K\)"),
        (np.ones((0, 2)), np.array([], dtype=int), "no images"),
        (np.ones((1, 2)), np.array([2]), r"\[0, 2\)"),
        (np.array([[np.nan, 1.0]]), np.array([0]), "NaN"),
    ],
)
def test_nonsense_is_refused(probabilities: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(probabilities, labels)


def test_confusion_matrix_has_true_classes_as_rows() -> None:
    counts = confusion_matrix_counts(np.array([1, 1, 2, 0]), np.array([0, 1, 1, 0]), 4)
    expected = reference.confusion_matrix([0, 1, 1, 0], [1, 1, 2, 0], labels=range(4))
    assert counts.tolist() == expected.tolist()
    assert counts[0, 1] == 1


def test_table_of_classes() -> None:
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    areas = [{"auc": 0.9, "average_precision": 0.8}] * 2 + [{"auc": np.nan, "average_precision": np.nan}]
    rows = per_class_table(predictions, labels, ["猫", "dog", "absent"], areas)
    assert rows[0] == {
        "class": "猫",
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
        "support": 3,
        "auc": 0.9,
        "average_precision": 0.8,
    }
    absent = {"class": "absent", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert rows[2] == {**absent, "auc": None, "average_precision": None}


def test_small_integer_labels_do_not_overflow() -> None:
    labels = np.array([199, 3], dtype=np.uint8)
    counts = confusion_matrix_counts(labels, labels, 200)
    assert counts[199, 199] == 1
    assert counts.sum() == 2
