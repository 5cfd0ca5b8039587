"""The search with the real training: two small networks on digits."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from harness.config.compose import compose_sweep
from harness.search.sweep import run_sweep
from harness.tracking.artifacts import load_predictions, read_artifact
from harness.tracking.mlflow_writes import STORE_ERRORS
from harness.tracking.runs import get_run
from harness.training.checkpoints.checkpoint import load_checkpoint
from tests.search.conftest import SmallSweep


def test_trials_train_and_the_best_meets_the_test_split(small_sweep: SmallSweep) -> None:
    more = ["sweep.num_trials=2", "sweep.slots=2", "trainer.max_epochs=1", "sweep.evaluate_test=true",
            "data.max_train_samples=200", "tracking.log_model=false"]  # fmt: skip
    output = io.StringIO()
    plan = compose_sweep(small_sweep.overrides(*more), small_sweep.configs)
    result = run_sweep(plan, console=Console(file=output, width=120))

    assert [row.state for row in result.rows] == ["complete"] * 2, output.getvalue()
    assert result.best is not None
    assert result.best.checkpoint is not None
    checkpoint = load_checkpoint(result.best.checkpoint)
    assert checkpoint.config.optim.lr == result.best.params["optim.lr"]
    assert checkpoint.score == result.best.score
    assert result.test_metrics is not None
    assert 0 < result.test_metrics["test/accuracy"] <= 1
    tracking = plan.base.tracking
    for row in result.rows:  # every trial keeps its predictions, the best one is pictured
        run = get_run(tracking, str(row.run_id))
        assert load_predictions(tracking, run).correct.mean() == pytest.approx(row.score)
        assert read_artifact(tracking, run, "val/confusion.png")
        assert read_artifact(tracking, run, "pictures/learning_curves.png")
        assert read_artifact(tracking, run, "pictures/val/confident_mistakes.png")
        if row.number == result.best.number:
            assert read_artifact(tracking, run, "val/roc.png")
            assert read_artifact(tracking, run, "pictures/val/gradcam_wrong.png")
        else:
            with pytest.raises(STORE_ERRORS):
                read_artifact(tracking, run, "val/roc.png")
            with pytest.raises(STORE_ERRORS):
                read_artifact(tracking, run, "pictures/val/gradcam_wrong.png")
