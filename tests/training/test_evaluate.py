"""What a run has recorded of its checkpoint is used again, and only where it is of the very same."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from harness.analysis.evaluation import OF_TEMPERATURE, evaluate
from harness.analysis.predictions import predictions_of, to_bytes
from harness.data import load_splits
from harness.errors import TrackingError
from harness.tracking import names
from harness.tracking.artifacts import load_predictions
from harness.tracking.moved import found_path
from harness.tracking.runs import get_run
from harness.training.checkpoints.checkpoint import load_checkpoint
from harness.training.evaluate import look_at_trial, recorded_predictions, temperature_of
from harness.training.record_evaluation import record_evaluation
from tests.training.test_finalize import Recorded, recorded  # noqa: F401


def test_recorded_predictions_are_used_where_they_are_of_this_checkpoint(
    recorded: Recorded,  # noqa: F811
) -> None:
    tracking, run = recorded.tracking, get_run(recorded.tracking, recorded.winner)
    checkpoint, val = (
        load_checkpoint(found_path(run.checkpoint or "", tracking.dir)),
        load_splits(recorded.config.data).val,
    )
    kept = load_predictions(tracking, run)
    found = recorded_predictions(tracking, run, checkpoint, val)
    np.testing.assert_array_equal(found.logits, kept.logits)
    for other, of_run, why in (
        (replace(checkpoint, epoch=checkpoint.epoch + 1), run, "of another checkpoint"),
        (checkpoint, replace(run, status="KILLED"), "of another checkpoint"),
        (replace(checkpoint, class_names=tuple("abcdefghij")), run, "of other images"),
        (checkpoint, replace(run, metrics={**run.metrics, "best/val/loss": 9.0}), "do not give the loss"),
    ):
        with pytest.raises(TrackingError, match=why):
            recorded_predictions(tracking, of_run, other, val)
    with pytest.raises(TrackingError, match="of other images"):
        recorded_predictions(tracking, run, checkpoint, replace(val, digest="another"))

    # The temperature is the recorded one, be it that none was found; a run of earlier versions has neither.
    assert temperature_of(run) == run.metrics[names.TEMPERATURE]
    tracker = recorded.store.reopen_run(run.run_id)
    tracker.log_summary({names.TEMPERATURE: np.nan}, replaces=True)
    assert temperature_of(get_run(tracking, run.run_id)) is None
    assert temperature_of(replace(run, metrics={"best/val/accuracy": 0.5})) == "fit"
    assert temperature_of(replace(run, status="KILLED")) == "fit"

    # A second reading of the test split, of a model without a temperature, leaves none of the first.
    of_temperature = {f"test/{name}" for name in OF_TEMPERATURE}
    for temperature, expected in ((1.5, of_temperature), (None, set())):
        parent = recorded.store.reopen_run(recorded.parent)
        record_evaluation(parent, evaluate(replace(kept, split="test"), temperature))
        metrics = get_run(tracking, recorded.parent).metrics
        assert of_temperature & set(metrics) == expected
        assert metrics["test/ece"] > 0


@pytest.mark.slow
def test_a_trial_is_pictured_and_tested_with_what_it_has_recorded(
    recorded: Recorded,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    tracking, run = recorded.tracking, get_run(recorded.tracking, recorded.winner)
    path = found_path(run.checkpoint or "", tracking.dir)
    kept = load_predictions(tracking, run)
    look_at_trial(tracking, run.run_id, path)
    assert "predicted again" not in caplog.text
    tracker = recorded.store.reopen_run(run.run_id)
    wrong = predictions_of(
        kept.logits + np.arange(10), kept.labels, split="val", class_names=kept.class_names
    )
    tracker.log_bytes(to_bytes(replace(wrong, digest=kept.digest)), names.PREDICTIONS.format(split="val"))
    look_at_trial(tracking, run.run_id, path)
    assert "predicted again: those that run" in caplog.text

    tracker.log_summary({names.TEMPERATURE: 1.25}, replaces=True)
    final = recorded.finalize()
    assert final is not None
    assert final.metrics["test/temperature"] == 1.25
