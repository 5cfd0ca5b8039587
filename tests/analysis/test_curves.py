from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, roc_auc_score

from harness.analysis import curves
from harness.analysis.confusion_page import confusion_page
from harness.analysis.evaluation import Evaluation, evaluate
from harness.analysis.figures import confusion_matrix_figure
from harness.analysis.metrics import confusion_matrix_counts
from harness.analysis.predictions import predictions_of
from tests.helpers.drawing import drawn

DRAW = (curves.roc_figure, curves.precision_recall_figure, curves.reliability_figure, curves.confused_figure)


@lru_cache
def case(num_classes: int, count: int = 300, *, split: str = "val", skill: float = 2.0) -> Evaluation:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, count)
    logits = rng.normal(size=(count, num_classes)) + skill * np.eye(num_classes)[labels]
    names = [f"a rather long name {number}" for number in range(num_classes)]
    return evaluate(predictions_of(logits, labels, split=split, class_names=names))


@pytest.mark.parametrize("num_classes", [2, 10, 300])
@pytest.mark.parametrize("draw", DRAW)
def test_nothing_is_cut_off_and_no_label_is_unreadable(num_classes: int, draw) -> None:  # type: ignore[no-untyped-def]
    picture = drawn(draw(case(num_classes)))
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border == 255).all()
    assert max(picture.shape) < 2000


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("kind", ["all right", "one class", "constant"])
def test_degenerate_predictions_are_drawn_without_a_warning(kind: str, draw) -> None:  # type: ignore[no-untyped-def]
    labels = np.zeros(5, int) if kind == "one class" else np.arange(5) % 3
    logits = np.zeros((5, 3)) if kind == "constant" else 9 * np.eye(3)[labels]
    evaluation = evaluate(predictions_of(logits, labels, split="val", class_names=["a", "猫", "c"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(draw(evaluation))


def test_the_area_under_the_drawn_curves_is_the_measured_one() -> None:
    rng = np.random.default_rng(1)
    is_class = rng.random(500) < 0.3
    scores = rng.normal(size=500) + is_class
    roc = curves._roc_heights(is_class, scores)
    assert np.trapezoid(roc, curves.GRID) == pytest.approx(roc_auc_score(is_class, scores), abs=0.005)
    precision = curves._precision_heights(is_class, scores)
    assert precision.mean() == pytest.approx(average_precision_score(is_class, scores), abs=0.01)


def texts(figure: Figure) -> str:
    legend = figure.axes[0].get_legend()
    assert legend is not None
    return " ".join([legend.get_title().get_text(), *(text.get_text() for text in legend.get_texts())])


def test_few_classes_are_all_named_and_of_many_the_weakest() -> None:
    assert all(f"name {number} " in texts(curves.roc_figure(case(5))) for number in range(5))
    many = case(50)
    weakest = min(many.per_class, key=lambda row: 2 if row["auc"] is None else row["auc"])
    shown = texts(curves.roc_figure(many))
    assert weakest["class"] in shown
    assert "the 5 weakest classes" in shown
    assert f"AUC {many.metrics['auc']:.3f}" in shown


def test_the_reliability_diagram_shows_before_and_after() -> None:
    figure = curves.reliability_figure(case(10))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith("as trained")
    assert "fitted on these images" in titles[1]
    of_test = curves.reliability_figure(case(10, split="test"))
    assert len(of_test.axes) == 2, "no temperature, one panel"


@pytest.mark.parametrize("num_classes", [61, 400])
def test_a_confusion_matrix_of_many_classes_is_a_picture_of_bounded_size(num_classes: int) -> None:
    evaluation = case(num_classes, 2000)
    predictions = evaluation.predictions
    counts = confusion_matrix_counts(predictions.predicted, predictions.labels, num_classes)
    figure = confusion_matrix_figure(counts, predictions.class_names)
    picture = drawn(figure)
    assert max(picture.shape) < 1500
    assert 20 < len(figure.axes[0].get_xticklabels()) <= 50


def test_the_matrix_in_percent() -> None:
    figure = confusion_matrix_figure(np.array([[1, 399], [0, 3]]), ["a", "b"], in_percent=True)
    assert [text.get_text() for text in figure.axes[0].texts] == ["<1", "100", "100"]


def test_the_page_is_self_contained_and_names_two_classes_of_one_name_apart() -> None:
    page = confusion_page(np.array([[1, 2, 0], [0, 3, 0], [0, 0, 4]]), ["cat", "cat", "<b>"], "Validation")
    assert "cat (#0)" in page
    assert "cat (#1)" in page
    assert 'src="http' not in page
    assert "<b>" not in page.split("Plotly.newPlot")[-1]
