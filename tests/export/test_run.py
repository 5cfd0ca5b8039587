"""Exporting from a real run store: the best trial of the newest sweep, or a run by its id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.config.schema import DigitsData, RunConfig, ScratchModel, TrackingConfig
from harness.data import load_splits
from harness.errors import ExportError, TrackingError
from harness.export import bundle as bundling
from harness.export import export_run, load_bundle
from harness.models import build_model
from harness.tracking import names
from harness.tracking.store import RunStore, open_store
from harness.training.checkpoints.checkpoint import PREFIX, SECTION, ModelFacts
from harness.training.checkpoints.checkpoint_io import AtomicCheckpointIO


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DigitsData:
    return DigitsData(cache_dir=str(tmp_path_factory.mktemp("cache")), batch_size=32)


@pytest.fixture
def tracking(tmp_path: Path, made_store: None) -> TrackingConfig:
    return TrackingConfig(dir=str(tmp_path / "mlruns"))


def write_checkpoint(path: Path, data: DigitsData, digest: str | None = None) -> Path:
    splits = load_splits(data)
    config = RunConfig(model=ScratchModel(kind="keras_cnn"), data=data)
    classifier = build_model(config.model, len(splits.class_names), mean=splits.mean, std=splits.std)
    facts = ModelFacts(
        config.to_dict(), splits.class_names, splits.mean, splits.std, splits.name, digest or splits.digest
    )
    content = {
        "state_dict": {PREFIX + name: tensor for name, tensor in classifier.state_dict().items()},
        SECTION: {**facts.to_dict(), "epoch": 0, "score": 0.5},
    }
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def record(
    store: RunStore, name: str, metrics: dict[str, float], tags: dict[str, str], parent: str | None = None
) -> str:
    tracker = store.start_run(name, "digits", tags, parent)
    tracker.log_summary(metrics)
    tracker.finish("FINISHED")
    return tracker.run_id


def test_best_trial_of_the_newest_sweep(
    tracking: TrackingConfig, data: DigitsData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", data)
    store = open_store(tracking)
    in_sweep = {names.SWEEP: "which rate", names.CHECKPOINT: str(checkpoint)}
    measured = {"test/accuracy": 0.88, "best/val_accuracy": 0.9}
    parent = record(store, "which rate", measured, {names.KIND: "sweep", names.SWEEP: "which rate"})
    ids = [
        record(
            store,
            f"trial-{number}",
            {"val/accuracy": accuracy, "train/loss": np.nan},
            {**in_sweep, names.KIND: "trial", names.TRIAL: str(number)},
            parent,
        )
        for number, accuracy in enumerate((0.7, 0.9, 0.8))
    ]
    store.note(parent, {names.TESTED_RUN: ids[1]})

    result = export_run(tracking, None, tmp_path / "exports")
    assert result.path == tmp_path / "exports" / "which-rate"
    facts = load_bundle(result.path).config.run
    assert (facts.run_id, facts.trial, facts.num_trials) == (ids[1], 1, 3)
    assert facts.metrics == {"val/accuracy": 0.9, "test/accuracy": 0.88}

    asked: dict[str, Any] = {}
    monkeypatch.setattr(bundling, "export_checkpoint", lambda path, root, **known: asked.update(known))
    export_run(tracking, ids[2], tmp_path / "exports")
    assert asked["name"] == f"trial-2-{ids[2][:8]}"
    assert asked["facts"].metrics == {"val/accuracy": 0.8}  # the test result is the best trial's alone


def test_runs_that_cannot_be_exported(tracking: TrackingConfig, data: DigitsData, tmp_path: Path) -> None:
    store = open_store(tracking)
    without = record(store, "without", {}, {names.KIND: "train"})
    other_data = write_checkpoint(tmp_path / "best.ckpt", data, digest="0" * 64)
    moved = record(store, "moved", {}, {names.KIND: "train", names.CHECKPOINT: str(other_data)})
    for run, error, message in (
        (without, TrackingError, "kept no checkpoint"),
        ("nonsense", TrackingError, "no run 'nonsense'"),
        (moved, ExportError, "now finds digits .* put the images back"),
    ):
        with pytest.raises(error, match=message) as caught:
            export_run(tracking, run, tmp_path / "exports")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "exports").exists()
