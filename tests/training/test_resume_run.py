"""`harness train --resume`: an ended run trains longer where its schedule allows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from harness.cli.main import main
from harness.config.schema import TrackingConfig
from harness.tracking.runs import RunRecord, get_run
from harness.tracking.store import open_store
from harness.training.checkpoints.checkpoint import load_checkpoint

SMALL = (
    "data=digits", "model=lenet", "data.max_train_samples=300", "optim.lr=0.003", "tracking.log_model=false",
    "trainer.precision=fp32", "evaluation.pictures=none",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("made_store")


def train(tmp_path: Path, *overrides: str) -> RunRecord:
    """Train a run in the folder of runs, and return its record."""
    assert main(["train", *SMALL, f"tracking.run_name={tmp_path.name}", *overrides]) == 0
    return record(tmp_path, tmp_path.name)


def record(tmp_path: Path, reference: str) -> RunRecord:
    return get_run(TrackingConfig(dir=str(tmp_path / "mlruns")), reference)


def weights(tmp_path: Path, run: RunRecord) -> dict[str, torch.Tensor]:
    return load_checkpoint(tmp_path / "mlruns" / "checkpoints" / run.run_id / "last.ckpt").state_dict


def test_an_ended_run_trains_longer_to_the_same_weights(tmp_path: Path) -> None:
    constant = ("optim.schedule.kind=constant", "trainer.select=last")
    run = train(tmp_path, *constant, "trainer.max_epochs=1")
    assert main(["train", "--resume", run.run_id, "trainer.max_epochs=3"]) == 0
    longer = record(tmp_path, run.run_id)
    assert main(["train", *SMALL, *constant, "trainer.max_epochs=3", "tracking.run_name=whole"]) == 0
    whole = record(tmp_path, "whole")

    assert (longer.status, longer.metrics["epoch"], longer.metrics["best_epoch"]) == ("FINISHED", 2, 2)
    assert longer.params["trainer.max_epochs"] == "3"  # as compare shows it
    for name in ("val/loss", "best/val/loss"):
        assert longer.metrics[name] == whole.metrics[name]
    uninterrupted = weights(tmp_path, whole)
    assert all(torch.equal(tensor, uninterrupted[name]) for name, tensor in weights(tmp_path, longer).items())
    assert longer.metrics["trained_seconds"] > sum(
        point.value
        for point in open_store(TrackingConfig(dir=str(tmp_path / "mlruns"))).client.get_metric_history(
            run.run_id, "epoch_seconds"
        )
    )


def test_what_cannot_go_on_is_said_with_the_reason_and_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, "trainer.max_epochs=1")
    for overrides, fault in (
        ((), r"has finished its 1 epochs.*add trainer\.max_epochs=2"),
        (("trainer.max_epochs=2",), r"the rates of its cosine schedule are laid out over 1 .* Train it anew"),
        (("optim.lr=0.1",), r"optim\.lr cannot change; valid here: trainer\.compile"),
        (("trainer.max_epoch=2",), r"trainer\.max_epoch cannot change; did you mean 'trainer\.max_epochs'"),
        (("trainer.max_epochs=-2",), r"trainer\.max_epochs=-2"),
    ):
        assert main(["train", "--resume", run.run_id, *overrides]) == 2
        line = capsys.readouterr().err
        assert re.search(fault, line), line
        assert line.count("\n") == 1
    assert record(tmp_path, run.run_id).status == "FINISHED"


def test_a_run_that_stopped_early_says_what_else_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = iter(range(9))
    worse = lambda *_: {"val/loss": 1.0, "val/accuracy": 1.0 - 0.1 * next(epochs)}  # noqa: E731
    monkeypatch.setattr("harness.training.module._val_metrics", worse)
    stops = ("optim.schedule.kind=constant", "trainer.max_epochs=4", "trainer.early_stopping_patience=1")
    run = train(tmp_path, *stops)
    assert run.metrics["epoch"] == 1

    assert main(["train", "--resume", run.run_id, "trainer.max_epochs=5"]) == 2
    assert "add trainer.early_stopping_patience=null" in capsys.readouterr().err
    more = ("trainer.early_stopping_patience=null", "trainer.max_epochs=3")
    assert main(["train", "--resume", run.run_id, *more]) == 0
    assert record(tmp_path, run.run_id).metrics["epoch"] == 2
