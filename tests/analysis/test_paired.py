"""Two models on the same images: against statsmodels, SciPy, a bootstrap of images and hand-worked cases."""

from __future__ import annotations

import csv
import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from scipy import stats
from statsmodels.stats.multitest import multipletests

from harness.analysis.paired import ImagesReport, bootstrap_difference, compare_images, describe_models
from harness.analysis.predictions import Predictions, predictions_of
from harness.errors import TrackingError

CLASSES = ("cat", "dog", "bird")


def answers(
    predicted: list[int] | np.ndarray, labels: list[int] | np.ndarray, digest: str = "d"
) -> Predictions:
    logits = np.eye(len(CLASSES))[np.asarray(predicted)]
    return predictions_of(logits, np.asarray(labels), split="val", class_names=CLASSES, digest=digest)


def report_of(**predictions: Predictions) -> ImagesReport:
    report = compare_images(predictions)
    assert report is not None
    return report


def random_models(count: int = 300) -> dict[str, Predictions]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    shares = {"a": 0.9, "b": 0.8, "c": 0.79, "d": 0.5}
    return {
        name: answers(np.where(rng.random(count) < share, labels, (labels + 1) % 3), labels)
        for name, share in shares.items()
    }


def test_a_case_worked_by_hand() -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    better = answers([0, 0, 0, 1, 1, 1, 1, 1], labels)  # wrong on image 3
    worse = answers([1, 1, 0, 0, 1, 1, 1, 2], labels)  # wrong on images 0, 1 and 7
    report = report_of(worse=worse, better=better)
    (pair,) = report.pairs
    assert (pair.first, pair.second, pair.count) == ("better", "worse", 8)
    assert pair.first_alone.tolist() == [0, 1, 7]
    assert pair.second_alone.tolist() == [3]
    assert pair.difference == 2 / 8
    assert pair.p_value == pytest.approx(
        2 * (1 + 4) / 16
    )  # 4 coins: at most one of them the other way, twice
    assert pair.by_class[:2].tolist() == [0.25, 0.25]
    assert np.isnan(pair.by_class[2])  # no bird
    assert list(csv.reader(io.StringIO(report.to_csv()))) == [
        ["index", "class", "better", "worse"],
        ["0", "cat", "cat", "dog"],
        ["1", "cat", "cat", "dog"],
        ["3", "cat", "dog", "cat"],
        ["7", "dog", "dog", "bird"],
    ]


def test_p_values_are_mcnemars_corrected_by_holm() -> None:
    models = random_models()
    report = report_of(**models)
    assert list(report.predictions) == sorted(models, key=lambda name: -models[name].correct.mean())
    assert len(report.pairs) == 6
    for pair in report.pairs:
        alone, other = len(pair.first_alone), len(pair.second_alone)
        assert pair.p_value == pytest.approx(stats.binomtest(alone, alone + other).pvalue)
        first, second = models[pair.first].correct, models[pair.second].correct
        assert pair.difference == pytest.approx(first.mean() - second.mean())
        assert pair.low < pair.difference < pair.high
    expected = multipletests([pair.p_value for pair in report.pairs], method="holm")[1]
    assert [pair.corrected for pair in report.pairs] == pytest.approx(list(expected))


def test_the_bootstrap_from_three_counts_is_that_of_the_images() -> None:
    models = random_models()
    a, b = models["a"].correct, models["b"].correct
    differences = a.astype(float) - b.astype(float)
    rows = np.random.default_rng(1).integers(0, len(a), (9_999, len(a)))
    expected = np.percentile(differences[rows].mean(axis=1), [2.5, 97.5])
    found = bootstrap_difference(int((a & ~b).sum()), int((b & ~a).sum()), len(a))
    assert found == pytest.approx(tuple(expected), abs=0.005)


def test_models_that_answer_alike_are_not_told_apart() -> None:
    models = random_models()
    (pair,) = report_of(a=models["a"], again=models["a"]).pairs
    assert (pair.p_value, pair.low, pair.high) == (1.0, 0.0, 0.0)
    assert not pair.is_found
    assert "right on the same images" in describe_models(pair, CLASSES)


def test_each_pair_is_one_sentence() -> None:
    report = report_of(**random_models())
    said = {(pair.first, pair.second): sentence for pair, sentence in report.sentences()}
    assert said["a", "d"].startswith("a is a better model than d: right where the other is wrong on ")
    assert "after Holm's correction" in said["a", "d"]
    close = [pair for pair in report.pairs if {pair.first, pair.second} == {"b", "c"}]
    assert "do not tell" in said[close[0].first, close[0].second]


def test_the_text_fits_and_says_whose_difference_it_is() -> None:
    report = report_of(**random_models())
    text = report.to_text(80)
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    assert "about these trained models, not about their configurations" in " ".join(text.split())
    assert "3 more pairs of models are in the files" in text
    assert all(sentence in report.to_markdown() for _, sentence in report.sentences())
    labels = report.predictions["a"].labels
    share = report.predictions["a"].correct[labels == 0].mean()
    assert f"| cat | {(labels == 0).sum()} | {share:.4f} |" in report.to_markdown()


@pytest.mark.parametrize("change", ["digest", "labels", "index", "class_names"])
def test_answers_to_different_images_are_refused(change: str) -> None:
    one = random_models()["a"]
    others = {
        "digest": "another",
        "labels": (one.labels + 1) % 3,
        "index": one.index + 1,
        "class_names": ("x", *CLASSES[1:]),
    }
    with pytest.raises(TrackingError, match="different images"):
        compare_images({"a": one, "b": replace(one, **{change: others[change]})})


def test_one_model_is_compared_with_nobody() -> None:
    assert compare_images({"a": random_models()["a"]}) is None


@pytest.mark.slow
def test_equal_models_are_called_different_in_five_percent_at_most() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros(200, dtype=int)
    found = 0
    for _ in range(100):
        pair = report_of(
            **{name: answers((rng.random(200) > 0.8).astype(int), labels) for name in ("a", "b")}
        ).pairs[0]
        found += pair.is_found
    assert found <= 8  # 5 % and two standard errors; the exact test stays below


def test_every_pair_of_models_is_compared() -> None:
    report = report_of(**random_models())
    expected = {frozenset(two) for two in itertools.combinations(random_models(), 2)}
    assert {frozenset((pair.first, pair.second)) for pair in report.pairs} == expected
