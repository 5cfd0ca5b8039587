"""Multi-label runs from end to end on two digits to an image: training, resume, evaluation, the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import average_precision_score

from harness.analysis.multilabel_metrics import choose_thresholds
from harness.config.compose import compose_run
from harness.config.monitor import METRICS_OF_LABELS
from harness.config.schema import RunConfig
from harness.data import load_splits
from harness.data.held_out import load_test
from harness.training.checkpoints.checkpoint import load_checkpoint, restore_classifier
from harness.training.devices.machine import machine_at_hand
from harness.training.evaluate import evaluate_checkpoint, plain_thresholds, predict
from tests.helpers.recording_tracker import RecordingTracker
from tests.helpers.two_digits import NAMES, write_two_digits
from tests.training.conftest import stop_after
from tests.training.test_train import assert_equal_bits, weights

Run = Callable[..., tuple]
pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RunConfig]:
    root = write_two_digits(tmp_path / "two digits", 360)
    fixed = [
        "data=multilabel", f"data.dir='{root}'", "data.decode_size=16", "data.batch_size=32",
        "data.val_fraction=0.2", "model=lenet", "model.image_size=16", "augment=none", "optim.lr=0.005",
        "tracking.log_model=false", "trainer.max_epochs=4",
    ]  # fmt: skip
    return lambda *overrides: compose_run([*fixed, *overrides])


def test_a_run_learns_and_records_what_suits_labels(
    run: Run, config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    result, tracker = run(config("trainer.max_epochs=10", "evaluate_test=true"), closely=True)
    assert result.score > 0.75, "a share of yes of about 0.22 would be the mAP of chance"
    assert set(METRICS_OF_LABELS) == {name for name in result.metrics if name.startswith("val/")}
    assert "train/exact_match" in tracker.epochs[0]
    assert result.score == max(epoch["val/mAP"] for epoch in tracker.epochs.values())
    assert {"best/val/f1_at_thresholds", "test/f1_at_thresholds", "test/mAP"} <= set(tracker.summary)
    assert not [name for name in tracker.summary if "accuracy" in name or "temperature" in name]
    recorded = {"val/summary.md", "val/labels.csv", "val/thresholds.json", "val/precision_recall.png"}
    assert {*recorded, "predictions/val.npz", "predictions/test.npz", "test/summary.md"} <= set(
        tracker.artifacts
    )
    assert "val/confusion.png" not in tracker.artifacts
    # Independent of the run: the file's model, scikit-learn, the test images.
    checkpoint = load_checkpoint(tmp_path / "run" / "best.ckpt")
    test = load_test(checkpoint.config.data)
    images = torch.from_numpy(test.gather(slice(None))).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = restore_classifier(checkpoint).eval()(images).numpy()
    areas = [average_precision_score(test.labels[:, k], logits[:, k]) for k in range(len(NAMES))]
    assert tracker.summary["test/mAP"] == pytest.approx(np.mean(areas), abs=0.02)  # trained in bfloat16


def test_an_interrupted_run_ends_as_an_uninterrupted_one(run: Run, config: Callable[..., RunConfig]) -> None:
    asked = config(
        "augment.mixup_alpha=0.4", "augment.cutmix_alpha=1", "loss=focal", "optim.label_smoothing=0.1"
    )
    whole, _ = run(asked, "whole")
    stopped, _ = run(asked, "parts", **stop_after(2))
    assert stopped.status == "interrupted"
    resumed, _ = run(asked, "parts")
    assert_equal_bits(weights(whole.checkpoint.parent), weights(resumed.checkpoint.parent))
    assert whole.score == resumed.score


def test_thresholds_are_chosen_on_validation_alone(
    run: Run, config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    result, tracker = run(config())
    chosen = json.loads(tracker.artifacts["val/thresholds.json"])
    assert list(chosen) == list(NAMES)
    again = RecordingTracker()
    evaluate_checkpoint(result.checkpoint, split="test", tracker=again)
    rows = again.artifacts["test/labels.csv"].decode().splitlines()[1:]
    assert [float(row.split(",")[1]) for row in rows] == pytest.approx(list(chosen.values()), abs=1e-6)
    assert len(load_splits(config().data).val.labels) > 0


def test_class_weights_and_cached_features_reach_multilabel_runs(
    run: Run, config: Callable[..., RunConfig]
) -> None:
    """A linear probe on cached activations of two views ends as one that runs the backbone each time."""
    probe = [
        "model=efficientnet_lite0",
        "model.image_size=32",
        "finetune=linear_probe",
        "trainer.precision=fp32",
    ]
    probe += ["loss.class_weights=balanced", "augment.flip=true", "trainer.max_epochs=2"]
    cached, tracker = run(config(*probe), "cached")
    plain, _ = run(config(*probe, "finetune.cache_features=false"), "plain")
    assert (tracker.params["features.cached"], tracker.params["features.views"]) == ("true", "2")
    assert cached.metrics["val/loss"] == pytest.approx(plain.metrics["val/loss"], rel=1e-3)


def test_exported_thresholds_are_of_answers_without_test_time_augmentation(
    run: Run, config: Callable[..., RunConfig]
) -> None:
    result, tracker = run(config("evaluation.tta=flip_shift"))
    assert {"val/mAP_no_tta"} <= set(tracker.epochs[0])
    checkpoint = load_checkpoint(result.checkpoint)
    splits = load_splits(checkpoint.config.data)
    classifier = restore_classifier(checkpoint)
    machine = machine_at_hand(checkpoint.config.trainer, classifier.network)
    plain, _ = predict(classifier, splits.val, machine, 32)
    expected = choose_thresholds(expit(plain.astype(np.float64)), splits.val.labels)
    found = plain_thresholds(checkpoint, splits)
    assert found == pytest.approx(expected.tolist(), abs=1e-6)
    assert found != pytest.approx(
        list(json.loads(tracker.artifacts["val/thresholds.json"]).values()), abs=1e-6
    )
