from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from harness.analysis.predictions import Predictions, from_bytes, predictions_of, to_bytes
from harness.errors import DivergedError, TrackingError


def random_predictions(num_classes: int, count: int = 200, scale: float = 5.0) -> Predictions:
    rng = np.random.default_rng(0)
    return predictions_of(
        (rng.normal(size=(count, num_classes)) * scale).astype(np.float32),
        rng.integers(0, num_classes, count),
        split="val",
        class_names=[f"clässe {number} 猫" for number in range(num_classes)],
        digest="ab" * 32,
        index_N=rng.permutation(70_000)[:count],
    )


def test_the_loss_is_torchs_and_the_first_of_equal_logits_is_predicted() -> None:
    made = random_predictions(7)
    logits = torch.from_numpy(made.logits).double()
    expected = F.cross_entropy(logits, torch.from_numpy(made.labels), reduction="none")
    np.testing.assert_allclose(made.loss, expected, rtol=1e-5)
    tied = predictions_of(np.zeros((2, 3)), np.array([0, 1]), split="val", class_names=["a", "b", "c"])
    assert tied.predicted.tolist() == [0, 0]
    assert tied.correct.tolist() == [True, False]


def test_the_file_gives_back_what_was_written() -> None:
    made = random_predictions(10)
    read = from_bytes(to_bytes(made), "val.npz")
    for field in dataclasses.fields(Predictions):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(made, field.name), field.name)
    assert to_bytes(made) == to_bytes(read), "the same predictions are the same bytes"


def test_many_classes_are_kept_in_half_the_space_and_nothing_that_counts_changes() -> None:
    made = random_predictions(1000, scale=40_000.0)  # beyond the range of float16
    content = to_bytes(made)
    read = from_bytes(content, "val.npz")
    assert len(content) < 2.2 * made.logits.size
    assert read.logits_dtype == "float16"
    assert np.isfinite(read.logits).all()
    np.testing.assert_array_equal(read.predicted, made.predicted)
    np.testing.assert_array_equal(read.loss, made.loss)
    mild = random_predictions(1000, scale=1.0)
    kept = from_bytes(to_bytes(mild), "val.npz")
    np.testing.assert_allclose(
        np.exp(kept.log_probabilities), np.exp(mild.log_probabilities), rtol=5e-3, atol=1e-7
    )
    with np.load(io.BytesIO(content)) as arrays:
        assert b"rounded to float16" in arrays["about"].tobytes(), "the file itself says so"


@pytest.mark.parametrize("kind", ["cut", "text", "flipped", "missing", "shape", "later"])
def test_a_file_that_cannot_be_read_is_named_in_one_line(kind: str) -> None:
    content = to_bytes(random_predictions(3))
    with np.load(io.BytesIO(content)) as arrays:
        parts = dict(arrays)
    if kind == "missing":
        del parts["loss"]
    if kind == "shape":
        parts["labels"] = parts["labels"][:5]
    if kind == "later":
        parts["version"] = np.int64(99)
    file = io.BytesIO()
    np.savez(file, **parts)
    middle = len(content) // 2
    damaged = {
        "cut": content[:-40],
        "text": b"<html>not found</html>",
        "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }.get(kind, file.getvalue())
    with pytest.raises(TrackingError, match=r"predictions/val\.npz of run x is") as raised:
        from_bytes(damaged, "predictions/val.npz of run x")
    assert "\n" not in str(raised.value)


def test_logits_that_are_not_finite_are_named_in_one_line() -> None:
    logits = np.zeros((4, 2))
    logits[2, 1], logits[3, 0] = np.nan, np.inf
    with pytest.raises(DivergedError, match=r"2 of the 4 val images with NaN .* image 2"):
        predictions_of(logits, np.zeros(4, int), split="val", class_names=["a", "b"])


def test_arrays_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        predictions_of(np.zeros((0, 2)), np.zeros(0, int), split="val", class_names=["a", "b"])
    with pytest.raises(ValueError, match="classes"):
        predictions_of(np.zeros((1, 2)), np.zeros(1, int), split="val", class_names=["a"])
