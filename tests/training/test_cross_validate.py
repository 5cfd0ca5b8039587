"""Cross-validation on the digits: interrupted, continued, repeated; its records; what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.config.schema import RunConfig, TrackingConfig
from harness.data import load_splits
from harness.errors import ConfigError, DataError
from harness.tracking.artifacts import load_predictions
from harness.tracking.runs import get_run, search_runs
from harness.training.commands import cross_validate as module
from harness.training.commands.cross_validate import CrossValidation, cross_validate

Config = Callable[..., RunConfig]
SMALL = ("data.folds=3", "trainer.max_epochs=2", "tracking.system_metrics=false")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.fold=1"], ConfigError, r"data\.fold cannot be set for cross-validation: every fold"),
        (["evaluate_test=true"], ConfigError, "evaluate_test cannot be set"),
        (["data.train_on_val=true", "trainer.select=last"], ConfigError, r"data\.train_on_val cannot be set"),
        (["data.folds=200"], DataError, r"data\.folds=200 needs an image of each class in every fold"),
    ],
)
def test_what_makes_no_sense_costs_one_line(
    tiny_config: Config, overrides: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cross_validate(tiny_config("data.folds=3", *overrides))


@pytest.mark.slow
@pytest.mark.usefixtures("made_store")
def test_an_interrupted_call_goes_on_and_ends_as_an_uninterrupted_one(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at(folder: str, *overrides: str) -> RunConfig:
        return tiny_config(*SMALL, f"tracking.dir={tmp_path / folder}", *overrides)

    whole = cross_validate(at("whole"))
    assert whole is not None

    epochs: list[int] = []

    def interrupt(report: object, monitor: str) -> str:
        epochs.append(1)
        if len(epochs) == 4:  # the second epoch of the second fold
            raise RuntimeError("the machine died")
        return "continue"

    said: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(module, "print_epoch", interrupt)
        with pytest.raises(RuntimeError, match="the machine died"):
            cross_validate(at("torn"), said.append)
    again = cross_validate(at("torn"), said.append)
    assert again is not None
    assert [line.partition(" (run")[0] for line in said] == [
        "fold 0 of 3:",
        "fold 1 of 3:",
        "fold 0 of 3 is done",
        "fold 1 of 3, going on:",
        "fold 2 of 3:",
    ]
    np.testing.assert_array_equal(again.evaluation.predictions.logits, whole.evaluation.predictions.logits)
    assert {one.score for one in again.folds} == {one.score for one in whole.folds}
    runs = search_runs(TrackingConfig(dir=str(tmp_path / "torn")), "")
    assert sorted(run.kind for run in runs) == ["cross-validation", "fold", "fold", "fold"]
    assert {run.status for run in runs} == {"FINISHED"}

    said.clear()
    third = cross_validate(at("torn", "trainer.threads=1"), said.append)
    assert said == [f"run {again.run_id} has done this: nothing is trained again"]
    assert third is not None
    assert third.estimates == again.estimates
    _check_records(third, at("torn"))


def _check_records(found: CrossValidation, config: RunConfig) -> None:
    tracking = config.tracking
    parent = get_run(tracking, found.run_id)
    scores = [one.metrics["val/accuracy"] for one in found.folds]
    assert parent.metrics["mean/val/accuracy"] == pytest.approx(np.mean(scores))
    assert parent.metrics["deviation/val/accuracy"] == pytest.approx(np.std(scores, ddof=1))
    assert parent.metrics["low/val/accuracy"] < np.mean(scores) < parent.metrics["high/val/accuracy"]
    out = load_predictions(tracking, parent, "oof")
    assert len(out) == 1438  # of 1,797 images, without the test's
    for one in found.folds:
        of_fold = load_predictions(tracking, get_run(tracking, one.run_id))
        at = np.searchsorted(out.index, of_fold.index)
        np.testing.assert_array_equal(out.logits[at], of_fold.logits)
        np.testing.assert_array_equal(out.labels[at], of_fold.labels)
        assert one.score == pytest.approx(of_fold.correct.mean())
    assert parent.metrics["oof/accuracy"] == pytest.approx(out.correct.mean())
    data = config.data.model_copy(update={"fold": 2})
    whole = load_splits(data).whole
    assert whole is not None
    assert out.digest == whole.train.digest
