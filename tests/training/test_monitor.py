"""One metric decides about a run: the epoch it keeps, when it stops, what is told, recorded and exported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss, roc_auc_score

from harness.config.compose import compose_run, compose_sweep
from harness.config.monitor import BY_ACCURACY, METRICS_OF_CLASSES, MonitorConfig
from harness.data import load_splits
from harness.errors import CheckpointError, ConfigError
from harness.training import module
from harness.training.checkpoints.checkpoint import SECTION, load_checkpoint, restore_classifier
from harness.training.evaluate import evaluate_checkpoint
from tests.training.conftest import stop_after

Run = Callable[..., tuple]
Config = Callable[..., object]

# The accuracy is best in the second epoch, the loss in the first, F1 in the third.
SCRIPT = {
    "val/accuracy": (0.80, 0.81, 0.79, 0.78),
    "val/loss": (0.50, 0.90, 0.95, 0.99),
    "val/f1": (0.70, 0.71, 0.75, 0.72),
}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the epochs of a run measure what the script says."""
    epochs: Iterator[int] = iter(range(10))

    def measure(*_: object) -> dict[str, float]:
        epoch = next(epochs)
        return {name: values[epoch] for name, values in SCRIPT.items()}

    monkeypatch.setattr(module, "_val_metrics", measure)


@pytest.mark.parametrize(("metric", "kept"), [("val/accuracy", 1), ("val/loss", 0), ("val/f1", 2)])
def test_the_monitored_metric_decides_which_epoch_is_kept_told_and_recorded(
    metric: str, kept: int, scripted: None, tiny_config: Config, run: Run
) -> None:
    result, tracker = run(tiny_config("trainer.max_epochs=4", f"trainer.monitor.metric={metric}"))

    assert (result.best_epoch, result.score) == (kept, SCRIPT[metric][kept])
    checkpoint = load_checkpoint(result.checkpoint)
    assert (checkpoint.epoch, checkpoint.score) == (kept, SCRIPT[metric][kept])
    for name, values in SCRIPT.items():  # all metrics of that epoch, not the best of each
        assert result.metrics[name] == values[kept]
        assert tracker.epochs[kept][f"best/{name}"] == values[kept]
        assert [epoch[name] for epoch in tracker.epochs.values()] == list(values)
    later = [epoch for number, epoch in tracker.epochs.items() if number > kept]
    assert not any(name.startswith("best/") for epoch in later for name in epoch)
    assert tracker.summary["best_epoch"] == kept


@pytest.mark.parametrize(("metric", "epochs"), [("val/accuracy", 4), ("val/loss", 3)])
def test_a_run_stops_when_the_monitored_metric_gets_no_better(
    metric: str, epochs: int, scripted: None, tiny_config: Config, run: Run
) -> None:
    patience = "trainer.early_stopping_patience=2"
    _, tracker = run(tiny_config("trainer.max_epochs=4", patience, f"trainer.monitor.metric={metric}"))

    assert len(tracker.epochs) == epochs


def test_every_metric_has_one_definition(tiny_config: Config, run: Run) -> None:
    config = tiny_config("trainer.max_epochs=2", "trainer.monitor.metric=val/auc", "trainer.precision=fp32")
    result, tracker = run(config)
    again = evaluate_checkpoint(result.checkpoint, split="val")

    val = load_splits(config.data).val  # type: ignore[attr-defined]
    classifier = restore_classifier(load_checkpoint(result.checkpoint))
    with torch.inference_mode():
        logits = classifier(torch.from_numpy(val.gather(np.arange(len(val)))).permute(0, 3, 1, 2))
    probabilities = logits.double().softmax(1).numpy()
    choices = probabilities.argmax(1)
    assert set(METRICS_OF_CLASSES) == {name for name in result.metrics if name.startswith("val/")}
    for name, value in again.items():  # after training, further ones are computed once
        recorded = tracker.epochs[result.best_epoch] | tracker.summary
        assert recorded[f"best/{name}"] == pytest.approx(value, abs=0.01), name  # an image may change its bin
    assert {"val/ece", "val/brier", "val/balanced_accuracy", "val/average_precision"} <= set(again)
    for name in METRICS_OF_CLASSES:
        assert tracker.epochs[result.best_epoch][f"best/{name}"] == result.metrics[name]
        assert result.metrics[name] == pytest.approx(again[name], abs=1e-5)
    assert again["val/accuracy"] == (choices == val.labels).mean()
    assert again["val/f1"] == pytest.approx(f1_score(val.labels, choices, average="macro"))
    assert again["val/auc"] == pytest.approx(
        roc_auc_score(val.labels, probabilities, multi_class="ovr"), abs=1e-6
    )
    assert again["val/loss"] == pytest.approx(log_loss(val.labels, probabilities), abs=1e-5)


def test_no_figure_of_validation_stands_where_it_was_not_measured(tiny_config: Config, run: Run) -> None:
    _, tracker = run(tiny_config("trainer.max_epochs=2"))

    assert [name for name in tracker.summary if name.startswith("val/")] == []


def test_what_was_trained_is_summed_over_attempts(tiny_config: Config, run: Run) -> None:
    config = tiny_config("trainer.max_epochs=3")
    first, before = run(config, **stop_after(2))
    _, after = run(config)

    assert (first.status, sorted(before.epochs)) == ("interrupted", [0, 1])
    trained = [epoch["trained_seconds"] for epoch in after.epochs.values()]
    assert trained[:2] == [epoch["trained_seconds"] for epoch in before.epochs.values()]
    assert trained[2] >= trained[1] + after.epochs[2]["epoch_seconds"]
    assert after.summary["trained_seconds"] >= trained[2]


def test_a_run_is_not_resumed_under_another_monitor(tiny_config: Config, run: Run) -> None:
    run(tiny_config("trainer.max_epochs=1"))

    with pytest.raises(CheckpointError, match=r"another trainer\.monitor"):
        run(tiny_config("trainer.max_epochs=2", "trainer.monitor.metric=val/f1"))


def test_a_checkpoint_that_knows_of_no_monitor_was_chosen_by_accuracy(
    tiny_config: Config, run: Run, tmp_path: Path
) -> None:
    result, _ = run(tiny_config("trainer.max_epochs=1"))
    raw = copy.deepcopy(torch.load(result.checkpoint, weights_only=True))
    del raw[SECTION]["config"]["trainer"]["monitor"]
    torch.save(raw, tmp_path / "old.ckpt")

    assert load_checkpoint(tmp_path / "old.ckpt").config.trainer.monitor == BY_ACCURACY


def test_a_metric_without_a_value_is_no_monitor(
    tiny_config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_val_metrics", lambda *_: {"val/loss": 1.0, "val/accuracy": 1.0})

    with pytest.raises(
        ConfigError, match=r"metric=val/auc has no value where all validation images are of one"
    ):
        run(tiny_config("trainer.max_epochs=1", "trainer.monitor.metric=val/auc"))


def test_the_direction_follows_from_the_metric() -> None:
    monitor = compose_run(["data=digits", "trainer.monitor.metric=val/loss"]).trainer.monitor
    sweep = compose_sweep(["data=digits", "sweep.metric=val/loss"]).sweep

    assert monitor.direction == sweep.direction == "minimize"
    assert MonitorConfig(metric="val/auc").direction == "maximize"


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        (
            "trainer.monitor.metric=val/acuracy",
            r"trainer.monitor.metric=val/acuracy: unknown; did you mean 'val/",
        ),
        ("trainer.monitor.metric=f1", "unknown.*val/f1"),
        ("trainer.monitor.direction=minimize", "direction=minimize does not suit metric=val/accuracy"),
    ],
)
def test_a_wrong_monitor_is_one_line(override: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as raised:
        compose_run(["data=digits", override])
    assert "\n" not in str(raised.value)


def test_the_sweeps_metric_is_the_monitor_of_its_trials() -> None:
    plan = compose_sweep(["data=digits", "sweep.metric=val/f1"])
    trial = plan.compose_trial({"optim.lr": 0.001})

    assert trial.trainer.monitor == plan.base.trainer.monitor == MonitorConfig(metric="val/f1")
    for other in (
        ["trainer.monitor.metric=val/loss"],
        ["sweep.rules=[{when:{finetune:full},overrides:['trainer.monitor.metric=val/loss']}]"],
        ["sweep.space.trainer\\.monitor\\.metric={type:choice,values:[val/f1,val/auc]}"],
    ):
        with pytest.raises(ConfigError):
            compose_sweep(["data=digits", *other])


def test_a_run_of_a_gpu_is_evaluated_on_a_cpu(tiny_config: Config, run: Run, tmp_path: Path) -> None:
    result, _ = run(tiny_config("trainer.max_epochs=1", "trainer.device=cpu"))
    raw = copy.deepcopy(torch.load(result.checkpoint, weights_only=True))
    raw[SECTION]["config"]["trainer"] |= {"device": "cuda", "precision": "fp16"}
    torch.save(raw, tmp_path / "gpu.ckpt")

    again = evaluate_checkpoint(tmp_path / "gpu.ckpt", split="val")
    assert again["val/accuracy"] == pytest.approx(result.score, abs=0.01)
