"""`data=multilabel` chooses a loss and a metric that suit it, and refuses those of one class per image."""

from __future__ import annotations

import pytest

from harness.config.compose import compose_run, compose_sweep
from harness.config.schema import MultiLabelData, RunConfig
from harness.errors import ConfigError

MULTI = "data=multilabel"


def test_loss_and_metric_follow_from_the_data() -> None:
    run = compose_run([MULTI])
    assert (run.loss.kind, run.trainer.monitor.metric) == ("binary", "val/mAP")
    named = compose_run([MULTI, "loss=focal", "trainer.monitor.metric=val/loss"])
    assert (named.loss.kind, named.trainer.monitor.direction) == ("focal", "minimize")
    plan = compose_sweep([MULTI, "sweep.space={optim.lr: {type: float, low: 0.001, high: 0.01}}"])
    assert (plan.sweep.metric, plan.sweep.direction) == ("val/mAP", "maximize")
    trial = plan.compose_trial({"optim.lr": 0.002})
    assert (trial.loss.kind, trial.trainer.monitor) == ("binary", plan.sweep.monitor)
    restored = RunConfig.model_validate(run.to_dict())
    assert restored == run
    assert isinstance(restored.data, MultiLabelData)
    single = compose_run([])
    assert (single.loss.kind, single.trainer.monitor.metric) == ("cross_entropy", "val/accuracy")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([MULTI, "loss=cross_entropy"], "loss=cross_entropy is of a softmax"),
        ([MULTI, "trainer.monitor.metric=val/accuracy"], "val/accuracy is not measured with data=multilabel"),
        (["trainer.monitor.metric=val/mAP"], "val/mAP is not measured with data=auto"),
        ([MULTI, "distill=soft_targets", "distill.teacher=mine"], "distill=soft_targets compares softmaxes"),
        ([MULTI, "data.max_train_samples=500"], "data.max_train_samples draws a subset of each class"),
        ([MULTI, "data.sampling=over"], "data.sampling=over is of images with one class each"),
    ],
)
def test_what_does_not_suit_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_run(overrides)


@pytest.mark.parametrize("overrides", [[MULTI, "sweep.metric=val/accuracy"], ["sweep.metric=val/mAP"]])
def test_a_sweep_refuses_a_metric_of_the_other_kind(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.metric=.* is not measured with data="):
        compose_sweep(overrides)
