"""Which pictures a run leaves behind, and that they never change or end a run."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config.schema import RunConfig
from harness.training.checkpoints.checkpoint import load_checkpoint
from harness.training.evaluate import evaluate_checkpoint
from harness.training.pictures import ExamplesOfEpochs, wants_all
from tests.helpers.recording_tracker import RecordingTracker

Run = Callable[..., Any]
Config = Callable[..., RunConfig]

CHEAP = {"learning_curves", "val/confident_mistakes"}
COSTLY = {
    "filters",
    "val/highest_loss",
    "val/best_and_worst",
    "val/label_errors",
    "val/gradcam_right",
    "val/gradcam_wrong",
    "val/embedding",
    "val/feature_maps",
}
CURVES = {"val/roc.png", "val/reliability.png", "val/confused.png", "val/confusion.html"}


def pictures_of(tracker: RecordingTracker) -> set[str]:
    names = {name for name in tracker.artifacts if name.startswith("pictures/")}
    for name in names:
        assert Image.open(io.BytesIO(tracker.artifacts[name])).size[0] > 300
    return {name.removeprefix("pictures/").removesuffix(".png") for name in names}


@pytest.mark.slow
def test_a_single_run_has_all_and_changes_nothing(run: Run, tiny_config: Config, caplog: Any) -> None:
    config = tiny_config("trainer.max_epochs=2", "evaluation.pictures=auto")
    result, tracker = run(config, "all", closely=True)
    assert pictures_of(tracker) == CHEAP | COSTLY
    assert "is left out" not in caplog.text
    galleries = ("examples", "highest_loss", "confident_mistakes", "best_and_worst", "label_errors")
    at_the_end = {(f"pictures/val/{name}", 0) for name in galleries}
    assert at_the_end <= set(tracker.images)
    better = {
        step for key, step in set(tracker.images) - at_the_end if key == "pictures/val/examples_by_epoch"
    }
    assert len(tracker.images) == len(at_the_end) + len(better)
    assert {0, result.best_epoch} <= better

    plain, without = run(tiny_config("trainer.max_epochs=2"), "none", closely=True)
    assert pictures_of(without) == set()
    assert set(tracker.artifacts) >= CURVES
    assert not CURVES & set(without.artifacts)
    assert not without.images
    first, second = (load_checkpoint(r.checkpoint).state_dict for r in (result, plain))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert result.metrics["val/loss"] == plain.metrics["val/loss"]


def test_a_trial_has_a_few_unless_all_are_asked_for(run: Run, tiny_config: Config) -> None:
    result, tracker = run(tiny_config("trainer.max_epochs=1", "evaluation.pictures=auto"), "few")
    assert pictures_of(tracker) == CHEAP
    assert {key for key, _ in tracker.images} == {"pictures/val/confident_mistakes", "pictures/val/examples"}
    again = RecordingTracker()
    evaluate_checkpoint(result.checkpoint, split="test", tracker=again)
    assert pictures_of(again) == {"test/confident_mistakes"}
    assert set(again.images) == {("pictures/test/confident_mistakes", 0), ("pictures/test/examples", 0)}
    assert wants_all("all", False)
    assert wants_all("auto", True)
    assert not wants_all("auto", False)
    assert not wants_all("none", True)


def test_a_picture_that_fails_does_not_end_the_run(
    run: Run, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("harness.pictures.galleries.confident_mistakes_gallery", fails)
    result, tracker = run(tiny_config("trainer.max_epochs=1", "evaluation.pictures=auto"))
    assert result.status == "finished"
    assert pictures_of(tracker) == CHEAP - {"val/confident_mistakes"}
    assert "the picture val/confident_mistakes is left out: no memory" in caplog.text


def test_examples_are_recorded_more_rarely_in_later_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    monkeypatch.setattr("harness.training.pictures._record", lambda _, draw, step: recorded.append(step))

    class Arrays:
        labels = np.zeros(30, dtype=np.int64)

        def __len__(self) -> int:
            return 30

    examples = ExamplesOfEpochs(RecordingTracker(), Arrays(), ["a", "b"])  # type: ignore[arg-type]
    for epoch in range(100):
        examples(epoch, torch.zeros(30, 2))
    assert recorded[:6] == [0, 1, 2, 3, 4, 5]
    assert 15 <= len(recorded) <= 25


def test_a_run_of_an_earlier_version_may_go_on(run: Run, tiny_config: Config) -> None:
    """Its checkpoint holds no `evaluation.pictures`, and the pictures may be changed at a resume."""
    from harness.training.checkpoints.resume_point import _shaping

    assert _shaping({"tta": "none"}) == _shaping({"tta": "none", "pictures": "all"})
    assert _shaping({"tta": "none"}) != _shaping({"tta": "flip", "pictures": "all"})
