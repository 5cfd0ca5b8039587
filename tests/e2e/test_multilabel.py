"""A sweep over multi-label images, from the folder to the labels that an exported bundle prints."""

from __future__ import annotations

from pathlib import Path

import pytest

import harness
from harness.errors import HarnessError
from tests.helpers.two_digits import NAMES, write_two_digits

pytestmark = pytest.mark.slow


def test_a_sweep_is_tested_compared_exported_and_predicts_labels(tmp_path: Path) -> None:
    root, mlruns = write_two_digits(tmp_path / "two digits", 300), str(tmp_path / "mlruns")
    found = harness.sweep(
        "data=multilabel", f"data.dir='{root}'", "data.decode_size=16", "data.batch_size=32", "model=lenet",
        "model.image_size=16", "finetune=full", "augment=none", "optim.lr=0.005", "trainer.max_epochs=6",
        "sweep.space={optim.label_smoothing: {type: choice, values: [0.0, 0.1]}}", "sweep.num_trials=2",
        "sweep.sampler.kind=grid", "sweep.replicate.seeds=0", "sweep.slots=1", "sweep.compute_per_trial=null",
        "sweep.rules=[]", "sweep.name=labels", f"tracking.dir={mlruns}",
    )  # fmt: skip
    assert found.outcome == "complete"
    assert found.best is not None
    assert found.best.score == max(row.score for row in found.rows if row.score is not None)
    assert found.test_metrics is not None
    assert 0.5 < found.test_metrics["test/mAP"] <= 1.0
    table = harness.compare(sweep="labels", mlruns=mlruns)
    assert {"val/mAP", "optim.label_smoothing"} <= set(table.columns)
    assert "not compared in pairs" in "".join(table.notes)
    bundle = harness.export_run(output=tmp_path / "exports", mlruns=mlruns)
    assert bundle.config.classes == NAMES
    assert bundle.config.thresholds is not None
    card = (bundle.path / "README.md").read_text()
    assert "which labels one image has" in card
    assert "a sigmoid each" in card
    files = [root / f"images/{number}.png" for number in range(40)]
    answers = harness.predict(bundle.path, files, top=1)
    threshold = dict(zip(NAMES, bundle.config.thresholds, strict=True))
    for answer in answers:
        assert all(probability > threshold[name] for name, probability in answer.classes)
    assert len({len(answer.classes) for answer in answers}) > 1, (
        "none, one or several labels, whatever top is"
    )
    truth = {
        line.split(",")[0]: {
            name for name, cell in zip(NAMES, line.split(",")[1:], strict=True) if cell == "1"
        }
        for line in (root / "labels.csv").read_text().splitlines()[1:]
    }
    same = [truth[f"images/{n}.png"] == {name for name, _ in answers[n].classes} for n in range(40)]
    assert sum(same) > 20
    with pytest.raises(HarnessError, match="finalize tests an accuracy"):
        harness.finalize("labels", mlruns=mlruns)
    with pytest.raises(HarnessError, match="multi-label models have none"):
        harness.export_run(output=tmp_path / "exports", int8=0.01, mlruns=mlruns)
