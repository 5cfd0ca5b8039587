from __future__ import annotations

import numpy as np
import pytest

from harness.analysis.predictions import predictions_of, to_bytes
from harness.config.schema import TrackingConfig
from harness.errors import TrackingError
from harness.tracking import names
from harness.tracking.artifacts import load_predictions
from harness.tracking.runs import get_run
from harness.tracking.store import RunStore


def test_predictions_of_a_recorded_run_are_read_back(store: RunStore, tracking: TrackingConfig) -> None:
    logits = np.array([[1.0, 2.0], [3.0, 0.0]], np.float32)
    made = predictions_of(logits, np.array([1, 1]), split="val", class_names=["cat", "dog"], digest="f0")
    tracker = store.start_run("one", "digits", {})
    tracker.log_bytes(to_bytes(made), names.PREDICTIONS.format(split="val"))
    tracker.finish("FINISHED")
    read = load_predictions(tracking, get_run(tracking, tracker.run_id))
    np.testing.assert_array_equal(read.logits, logits)
    assert (read.class_names, read.digest, read.correct.tolist()) == (("cat", "dog"), "f0", [True, False])


def test_a_run_without_predictions_or_with_damaged_ones_is_one_line(
    store: RunStore, tracking: TrackingConfig
) -> None:
    tracker = store.start_run("earlier version", "digits", {})
    run = get_run(tracking, tracker.run_id)
    with pytest.raises(TrackingError, match=rf"{run.run_id} .* kept no predictions/test.npz") as raised:
        load_predictions(tracking, run, "test")
    assert "\n" not in str(raised.value)
    tracker.log_bytes(b"PK\x03\x04", names.PREDICTIONS.format(split="val"))
    with pytest.raises(TrackingError, match=r"predictions/val.npz of run .* is damaged"):
        load_predictions(tracking, run)
