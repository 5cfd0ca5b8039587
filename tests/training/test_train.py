"""The spine: what a run hands back and leaves behind, and that an interruption changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from harness.analysis.predictions import from_bytes
from harness.data import load_splits
from harness.errors import BatchSizeError, CheckpointError, ConfigError, DivergedError, HarnessError
from harness.search.trial.outcomes import judge
from harness.training.checkpoints.checkpoint import load_checkpoint, restore_classifier
from harness.training.commands.dry_run import describe_run
from harness.training.evaluate import evaluate_checkpoint
from harness.training.result import EpochReport
from tests.helpers.recording_tracker import RecordingTracker

Run = Callable[..., tuple]
Config = Callable[..., object]


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / name).state_dict


def assert_equal_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize(("batch_size", "steps"), [(20, 3), (21, 3), (30, 2)])
def test_a_plan_counts_the_steps_that_are_taken(
    run: Run, tiny_config: Config, batch_size: int, steps: int
) -> None:
    """Of 61 images, a last batch of a single one is left out."""
    config = tiny_config("data.max_train_samples=61", "trainer.max_epochs=1", f"data.batch_size={batch_size}")
    taken: list[Optimizer] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: taken.append(optimizer))
    run(config)
    handle.remove()
    assert len(taken) == steps
    assert f"{steps} an epoch" in describe_run(config)


def test_a_plan_refuses_a_border_that_images_cannot_fill(tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match="crop_padding=40"):
        describe_run(tiny_config("augment.crop_padding=40"))


def test_a_run_learns_and_records(run: Run, tiny_config: Config, tmp_path: Path) -> None:
    result, tracker = run(tiny_config("trainer.max_epochs=6", "data.batch_size=32", "augment=none"))
    assert (result.status, tracker.status) == ("finished", "FINISHED")
    assert result.score > 0.6, "six epochs of the digits are well above chance (0.1)"
    assert sorted(tracker.epochs) == list(range(6))
    assert {"train/loss", "val/accuracy", "lr", "images_per_second", "epoch_seconds"} <= set(
        tracker.epochs[0]
    )
    assert result.score == max(epoch["val/accuracy"] for epoch in tracker.epochs.values())
    assert tracker.epochs[result.best_epoch]["best/val/accuracy"] == result.score
    best = {"best/val/precision", "best/val/recall", "best/val/f1", "best/val/auc", "best/val/loss"}
    assert best <= set(tracker.epochs[result.best_epoch])
    assert tracker.summary["best_epoch"] == result.best_epoch
    assert not [name for name in tracker.summary if name.startswith("test/")], (
        "nobody asked for the test split"
    )
    recorded = {"config.yaml", "val/confusion.png", "val/confusion.json", "val/classes.csv", "val/summary.md"}
    assert {*recorded, "predictions/val.npz"} <= set(tracker.artifacts)
    assert tracker.params["optim.lr"] == "0.003"
    assert tracker.params["parameters.trainable"] == "62006"
    assert tracker.tags["harness.checkpoint"] == str((tmp_path / "run" / "best.ckpt").resolve())


def test_the_recorded_score_is_the_checkpoints(run: Run, tiny_config: Config) -> None:
    """Independent of the run: load the file, look at the images again."""
    # In fp32, as below: `auto` is bf16 where the CPU has it, and rounds a close call the other way.
    config = tiny_config("trainer.max_epochs=2", "data.batch_size=64", "trainer.precision=fp32")
    result, tracker = run(config)
    assert result.checkpoint is not None
    classifier = restore_classifier(load_checkpoint(result.checkpoint))
    val = load_splits(config.data).val
    images = torch.from_numpy(val.images[val.indices]).permute(0, 3, 1, 2)
    with torch.no_grad():
        predicted = classifier(images).argmax(1).numpy()
    assert (predicted == val.labels).mean() == pytest.approx(result.score)
    recorded = from_bytes(tracker.artifacts["predictions/val.npz"], "val.npz")
    np.testing.assert_array_equal(recorded.predicted, predicted)
    np.testing.assert_array_equal(recorded.labels, val.labels)
    np.testing.assert_array_equal(recorded.index, val.indices)
    assert recorded.digest == val.digest != ""
    metrics = evaluate_checkpoint(result.checkpoint, split="val")
    assert metrics["val/accuracy"] == pytest.approx(result.score)


def test_same_seed_same_weights(run: Run, tiny_config: Config, tmp_path: Path) -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(tiny_config(f"seed={seed}", "trainer.max_epochs=1"), folder)
    assert_equal_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
    a, c = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert [name for name in a if torch.equal(a[name], c[name])] == []


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config("trainer.max_epochs=4", "augment=strong", "optim=sgd", "optim.lr=0.02")
    _, whole = run(config, "whole")

    asked = iter(range(10**6))
    batches_before_stop = 10  # in the middle of the second epoch: 3 + 1 batches an epoch
    result, first = run(config, "parts", stop_requested=lambda: next(asked) >= batches_before_stop)
    assert (result.status, first.status) == ("interrupted", "KILLED")
    assert 0 < len(first.epochs) < 4
    result, second = run(config, "parts")
    assert result.status == "finished"

    assert_equal_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert_equal_bits(weights(tmp_path / "whole", "best.ckpt"), weights(tmp_path / "parts", "best.ckpt"))
    timeless = ("train/loss", "val/loss", "val/accuracy", "lr")
    for epoch, metrics in whole.epochs.items():
        assert {k: metrics[k] for k in timeless} == {k: second.epochs[epoch][k] for k in timeless}


def test_every_epoch_is_the_last_checkpoint_not_the_best_ones_alone(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config("trainer.max_epochs=3", "optim.lr=1e-12")  # nothing changes: the first is best
    result, _ = run(config)
    assert result.best_epoch == 0
    assert load_checkpoint(tmp_path / "run" / "best.ckpt").epoch == 0
    assert load_checkpoint(tmp_path / "run" / "last.ckpt").epoch == 2
    epochs: list[int] = []
    run(config, on_epoch=lambda report: epochs.append(report.epoch) or "continue")
    assert epochs == [], "a finished run is not trained again"


def test_a_finished_run_is_not_trained_again(run: Run, tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config("trainer.max_epochs=2")
    first, _ = run(config)
    before = (tmp_path / "run" / "last.ckpt").stat().st_mtime_ns
    epochs: list[int] = []
    again, _ = run(config, on_epoch=lambda report: epochs.append(report.epoch) or "continue")
    assert (tmp_path / "run" / "last.ckpt").stat().st_mtime_ns == before
    assert (epochs, again.score, again.best_epoch) == ([], first.score, first.best_epoch)


def test_another_question_does_not_continue_a_checkpoint(run: Run, tiny_config: Config) -> None:
    run(tiny_config("trainer.max_epochs=1"))
    with pytest.raises(CheckpointError, match="another 'optim' section"):
        run(tiny_config("trainer.max_epochs=1", "optim.lr=0.5"))


def test_pruning_ends_the_run_cleanly(run: Run, tiny_config: Config) -> None:
    def decide(report: EpochReport) -> str:
        return "prune" if report.epoch == 1 else "continue"

    result, tracker = run(tiny_config("trainer.max_epochs=9"), on_epoch=decide)
    assert (result.status, tracker.status, tracker.tags["harness.pruned"]) == ("pruned", "FINISHED", "true")
    assert sorted(tracker.epochs) == [0, 1]
    assert result.checkpoint is not None


def test_a_loss_that_blows_up_is_named(run: Run, tiny_config: Config) -> None:
    config = tiny_config("trainer.max_epochs=3", "optim=sgd", "optim.lr=1e30")
    with pytest.raises(DivergedError, match=r"lower optim.lr \(now 1e\+30\)"):
        run(config)


def test_a_failed_run_is_recorded_as_failed(tiny_config: Config, tmp_path: Path) -> None:
    from harness.training.train import train

    tracker = RecordingTracker()
    config = tiny_config("data.max_train_samples=5", "data.batch_size=4")
    with pytest.raises(HarnessError):
        train(config, tracker=tracker, checkpoint_dir=tmp_path)  # type: ignore[arg-type]
    assert tracker.status == "FAILED"
    assert "max_train_samples" in tracker.tags["harness.failure"]


def test_early_stopping(run: Run, tiny_config: Config) -> None:
    result, tracker = run(
        tiny_config("trainer.max_epochs=30", "trainer.early_stopping_patience=2", "optim.lr=1e-9")
    )
    assert result.status == "finished"
    assert len(tracker.epochs) == 3, "nothing changes: the first epoch is the best, and two more are waited"


def test_a_run_that_stopped_early_and_was_killed_before_it_told_trains_no_further(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config("trainer.max_epochs=9", "trainer.early_stopping_patience=2", "optim.lr=1e-9")
    whole, _ = run(config)
    before = weights(tmp_path / "run")
    again, tracker = run(config)
    assert sorted(tracker.epochs) == [0, 1, 2]
    assert (again.status, again.best_epoch) == ("finished", whole.best_epoch)
    assert_equal_bits(before, weights(tmp_path / "run"))


def test_early_stopping_counts_across_an_interruption(run: Run, tiny_config: Config) -> None:
    config = tiny_config("trainer.max_epochs=9", "trainer.early_stopping_patience=3", "optim.lr=1e-9")
    run(config, on_epoch=lambda report: "interrupt" if report.epoch == 1 else "continue")
    result, tracker = run(config)
    assert (result.status, sorted(tracker.epochs)) == ("finished", [0, 1, 2, 3])


def test_a_pruned_run_that_was_killed_before_it_told_is_still_pruned(run: Run, tiny_config: Config) -> None:
    config = tiny_config("trainer.max_epochs=9")
    run(config, on_epoch=lambda report: "prune" if report.epoch == 1 else "continue")
    asked: list[int] = []
    result, tracker = run(config, on_epoch=lambda report: asked.append(report.epoch) or "continue")
    assert (result.status, sorted(tracker.epochs), asked) == ("pruned", [0, 1], [])


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.003, 0.003]),
        # 270 images are two steps of 128 and one of 14; of six steps the third and the sixth are last.
        ("linear", [0.003 * 4 / 6, 0.003 * 1 / 6]),
    ],
)
def test_the_rate_of_an_epoch_is_the_one_that_its_last_step_used(
    run: Run, tiny_config: Config, schedule: str, rates: list[float]
) -> None:
    _, tracker = run(tiny_config("trainer.max_epochs=2", f"optim.schedule.kind={schedule}"))
    assert [tracker.epochs[epoch]["lr"] for epoch in range(2)] == pytest.approx(rates)


def test_the_test_split_is_read_only_when_asked_for(run: Run, tiny_config: Config) -> None:
    _, tracker = run(tiny_config("trainer.max_epochs=1", "evaluate_test=true"))
    assert {"test/accuracy", "test/precision", "test/recall", "test/f1", "test/auc"} <= set(tracker.summary)
    assert "test/confusion.png" in tracker.artifacts


def test_other_data_under_the_same_name_are_noticed(
    run: Run, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = run(tiny_config("trainer.max_epochs=1"))
    import harness.training.evaluate as module

    class Other:
        digest, name = "0" * 64, "digits"

    monkeypatch.setattr(module, "load_splits", lambda config: Other())
    with pytest.raises(CheckpointError, match="was trained on digits"):
        evaluate_checkpoint(result.checkpoint, split="test")


def test_what_auto_was_is_kept_for_good(run: Run, tiny_config: Config) -> None:
    result, tracker = run(tiny_config("data=auto", "data.max_train_samples=300", "trainer.max_epochs=1"))
    assert load_checkpoint(result.checkpoint).config.data.kind == "digits"
    assert (tracker.params["data.kind"], tracker.tags["harness.fallback_data"]) == ("digits", "true")


# ── the speed record's parts, in a run ────────────────────────────────────────────────────────────

SPEED = (
    "model=speed_cnn",
    "model.image_size=9",
    "data.max_train_samples=60",
    "data.val_fraction=0.02",
    "optim=muon",
    "optim.lr=0.1",
    "optim.head_lr=10",
    "optim.stem_epochs=1.5",
    "augment.flip=alternating",
    "data.batch_size=20",
    "trainer.select=last",
    "evaluation.tta=flip_shift",
)


@pytest.mark.slow
def test_muon_with_a_stem_that_stops_early_resumes_exactly(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config(*SPEED, "trainer.max_epochs=4")
    run(config, "whole")
    for num_batches in (6, 5):  # 3 + 1 batches an epoch: in the second epoch, then in the third
        asked = iter(range(10**6))
        run(config, "parts", stop_requested=lambda asked=asked, n=num_batches: next(asked) >= n)
    result, _ = run(config, "parts")
    assert (result.status, result.best_epoch) == ("finished", 3)
    assert_equal_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_the_stem_learns_no_more_after_its_epochs(run: Run, tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(*SPEED, "trainer.max_epochs=4")
    biases = []

    def keep(report: EpochReport) -> str:
        biases.append(report.epoch and weights(tmp_path / "run")["network.whiten.bias"])  # of the one before
        return "continue"

    run(config, on_epoch=keep)
    _, after_first, after_second, after_third = biases
    assert not torch.equal(after_first, after_second)
    assert torch.equal(after_second, after_third)
    assert torch.equal(after_third, weights(tmp_path / "run")["network.whiten.bias"])


def test_select_last_keeps_the_last_epoch_and_scores_with_the_declared_views(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    worse_in_the_end = ("optim.schedule.kind=step", "optim.schedule.step_epochs=3", "optim.label_smoothing=0")
    config = tiny_config(*SPEED, *worse_in_the_end, "trainer.max_epochs=3", "evaluate_test=true")
    result, tracker = run(config)
    assert result.best_epoch == 2
    assert tracker.epochs[0]["lr"] == pytest.approx(0.1), "optim.lr, not the head's or the biases'"
    assert result.score == tracker.epochs[2]["val/accuracy"]
    assert_equal_bits(weights(tmp_path / "run"), weights(tmp_path / "run", "best.ckpt"))
    again = evaluate_checkpoint(result.checkpoint, split="val")
    assert again["val/accuracy"] == pytest.approx(result.score)
    assert tracker.params["evaluation.tta"] == "flip_shift"
    classifier = restore_classifier(load_checkpoint(result.checkpoint))
    val = load_splits(config.data).val
    images = torch.from_numpy(val.images[val.indices]).permute(0, 3, 1, 2)
    with torch.no_grad():
        alone = (classifier(images).argmax(1).numpy() == val.labels).mean()
    assert again["val/accuracy_no_tta"] == pytest.approx(alone)
    assert result.metrics["val/accuracy_no_tta"] == tracker.epochs[2]["val/accuracy_no_tta"]
    assert result.metrics["val/accuracy_no_tta"] == pytest.approx(alone)
    assert {"test/accuracy", "test/accuracy_no_tta"} <= set(tracker.summary)


def test_batches_too_small_for_a_batch_norm_are_named_in_one_line(run: Run, tiny_config: Config) -> None:
    config = tiny_config(
        "model=timm", "model.name=resnet18", "model.image_size=32", "data.batch_size=1", "finetune=full"
    )
    with pytest.raises(BatchSizeError, match=r"data\.batch_size=2") as caught:
        run(config)
    assert "\n" not in str(caught.value)
    assert judge(caught.value)[0] == "infeasible"
