"""Two runs are the same if every value is, to the last bit."""

from __future__ import annotations

import math

import pytest

from harness.analysis.repetition import compare_points

RUN = {
    ("train/loss", 0): 1.25,
    ("train/loss", 1): 0.75,
    ("val/accuracy", 0): 0.5,
    ("val/accuracy", 1): 0.1 + 0.2,
    ("best/val/ece", 2): math.nan,
    ("params_millions", 2): 0.06,
    ("epoch_seconds", 0): 3.0,
    ("system/cpu_utilization_percentage", 0): 50.0,
    ("test/accuracy", 2): 0.5,
}


def test_times_and_the_test_split_are_not_compared() -> None:
    again = RUN | {("epoch_seconds", 0): 4.0, ("system/cpu_utilization_percentage", 0): 9.0}
    del again["test/accuracy", 2]
    found = compare_points(RUN, again)
    assert found.is_equal
    assert found.sentence == "equal to the last bit in 4 metrics (6 values, 2 epochs)"
    assert found.notes == ("not compared, as a rerun reads no test images: test/accuracy",)


def test_the_last_bit_counts() -> None:
    found = compare_points(RUN, RUN | {("val/accuracy", 1): 0.3, ("params_millions", 2): 0.07})
    assert not found.is_equal
    by_metric = {one.metric: one for one in found.differing}
    assert by_metric.keys() == {"val/accuracy", "params_millions"}
    accuracy = by_metric["val/accuracy"]
    assert (accuracy.num_differing, accuracy.num_values, accuracy.epoch) == (1, 2, 2)
    assert (accuracy.before, accuracy.now) == (0.30000000000000004, 0.3)
    assert by_metric["params_millions"].epoch is None
    assert "1 of 2              epoch 2  0.30000000000000004  0.3   5.55e-17" in found.to_text()


def test_missing_epochs_are_a_difference_and_more_are_none() -> None:
    shorter = {key: value for key, value in RUN.items() if key[1] == 0 or key[0] == "params_millions"}
    found = compare_points(RUN, shorter)
    assert not found.differing
    assert not found.is_equal
    assert found.notes[0].startswith("the run has 2 epochs, the rerun 1: only those of both")
    assert compare_points(shorter, RUN).is_equal  # an interrupted run, trained to its end


@pytest.mark.parametrize("again", [{}, {("other", 0): 1.0}])
def test_nothing_in_common_is_not_equality(again: dict[tuple[str, int], float]) -> None:
    found = compare_points({("train/loss", 0): 1.0}, again)
    assert not found.is_equal
    assert found.sentence.startswith("nothing was compared")


def test_one_sided_metrics_are_named() -> None:
    found = compare_points(RUN | {("holiday/accuracy", 9): 1.0}, RUN | {("val/new", 0): 1.0})
    assert found.is_equal
    assert "recorded by the run alone: holiday/accuracy" in found.notes
    assert "recorded by the rerun alone: val/new" in found.notes
