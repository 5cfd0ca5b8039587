"""`harness finalize`: the winner on the test split, once; as it is, or trained again on all images."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from harness.cli.main import main
from harness.config.compose import compose_run
from harness.config.schema import RunConfig, TrackingConfig
from harness.data import load_splits
from harness.data.held_out import load_test
from harness.errors import ConfigError, HarnessError, TrackingError
from harness.export import export_run
from harness.tracking import names
from harness.tracking.runs import get_run, read_ledger, search_runs
from harness.tracking.store import RunStore, open_store
from harness.training.checkpoints.checkpoint import load_checkpoint
from harness.training.commands.finalize import Final, final_config, finalize
from harness.training.train import train

SMALL = (
    "data=digits",
    "model=lenet",
    "finetune=full",
    "augment=none",
    "optim.lr=0.003",
    "data.batch_size=64",
    "evaluation.pictures=none",
)


@dataclass
class Recorded:
    """A sweep in the store, of one trial that was really trained; no search has run."""

    tracking: TrackingConfig
    store: RunStore
    config: RunConfig
    parent: str
    winner: str
    lines: list[str]

    def finalize(self, **options: Any) -> Final | None:
        self.lines.clear()
        return finalize(self.tracking, "mine", show=self.lines.append, **options)


@pytest.fixture
def recorded(made_store: None) -> Recorded:
    config = compose_run(
        [*SMALL, "optim.lr=0.003", "trainer.max_epochs=3", "trainer.end_after=2", "tracking.log_model=false"]
    )
    store = open_store(config.tracking)
    tags = {
        names.KIND: "sweep",
        names.SWEEP: "mine",
        names.METRIC: "val/accuracy",
        names.DIRECTION: "maximize",
    }
    parent = store.start_run("mine", "digits", tags)
    of_trial = {names.KIND: "trial", names.SWEEP: "mine", names.TRIAL: "0", names.OUTCOME: "complete"}
    trial = store.start_run("trial-0", "digits", of_trial, parent_run_id=parent.run_id)
    folder = Path(config.tracking.dir) / "sweeps" / "mine" / "trial-0000"
    folder.mkdir(parents=True)
    train(config, tracker=trial, checkpoint_dir=folder)
    parent.finish("FINISHED")
    return Recorded(config.tracking, store, config, parent.run_id, trial.run_id, [])


def test_the_winner_is_tested_once_and_a_second_call_shows_it(recorded: Recorded) -> None:
    final = recorded.finalize()
    assert final is not None
    assert (final.trial, final.run_id, final.is_retrained, final.is_new) == (0, recorded.winner, False, True)
    assert (final.num_train, final.num_test) == (1294, 359)
    assert final.accuracy == pytest.approx(final.metrics["test/accuracy"])
    expected = proportion_confint(final.num_correct, 359, method="wilson")
    np.testing.assert_allclose(final.interval, expected)
    assert f"test/accuracy {final.accuracy:.4f} (95 % interval {expected[0]:.4f} to" in str(final)
    plain = replace(final, metrics={**final.metrics, "test/accuracy_no_tta": 0.123})
    assert "(0.1230 without test-time augmentation) (95 % interval" in str(plain)

    again = recorded.finalize(retrain=True)
    assert again is not None
    assert (again.is_new, again.metrics) == (False, final.metrics)
    assert "finalized before (it was not trained again): --again reads" in recorded.lines[-1]
    assert [one.reading.command for one in read_ledger(recorded.tracking, "mine")] == [
        "harness finalize mine"
    ]

    third = recorded.finalize(again=True)
    assert third is not None
    assert (third.is_new, third.reading) == (True, 2)
    assert [(one.number, one.of) for one in read_ledger(recorded.tracking)] == [(1, 2), (2, 2)]
    assert read_ledger(recorded.tracking)[1].reading.command == "harness finalize mine --again"


def test_what_the_sweep_has_read_itself_is_not_read_again(recorded: Recorded) -> None:
    from harness.tracking.readings import next_reading

    parent = recorded.store.reopen_run(recorded.parent)
    parent.set_tags(
        {names.TESTED_RUN: recorded.winner, **next_reading({}, recorded.winner, "sweep").to_tag()}
    )
    parent.log_summary({"test/accuracy": 180 / 359, "test/loss": 1.5})
    parent.finish("FINISHED")
    final = recorded.finalize()
    assert final is not None
    assert (final.num_correct, final.reading, final.metrics["test/loss"]) == (180, 1, 1.5)
    assert len(read_ledger(recorded.tracking, "mine")) == 1
    assert "it is not read again" in recorded.lines[-1]


def test_a_retraining_sees_every_image_but_the_test_images_for_as_many_epochs(recorded: Recorded) -> None:
    final = recorded.finalize(retrain=True)
    assert final is not None
    run = get_run(recorded.tracking, final.run_id)
    assert (run.kind, run.parent_run_id, run.status) == ("final", recorded.parent, "FINISHED")
    assert run.params["trainer.max_epochs"] == "3"
    assert (final.is_retrained, final.num_epochs, final.num_train) == (True, 2, 1438)
    assert not any(name.startswith(("val/", "best/val/")) for name in run.metrics)
    assert run.metrics["epoch"] == 1
    assert final.accuracy > 0.5

    checkpoint = load_checkpoint(final.checkpoint)
    splits, before = load_splits(checkpoint.config.data), load_splits(recorded.config.data)
    assert len(splits.val) == 0
    assert checkpoint.data_digest == splits.digest
    both = np.concatenate([before.train.indices, before.val.indices])
    assert sorted(splits.train.indices) == sorted(both)
    assert not set(both) & set(load_test(checkpoint.config.data).indices)
    assert before.train.labels.tolist() == load_splits(recorded.config.data).train.labels.tolist()

    (bundle,) = [export_run(recorded.tracking, final.run_id, Path(recorded.tracking.dir) / "exports")]
    card = (bundle.path / "README.md").read_text("utf-8")
    assert "trained on the training and the validation images together" in card
    assert "read once for this sweep" in card
    assert bundle.config.score is None
    assert recorded.finalize().run_id == final.run_id  # type: ignore[union-attr]  # the trial is still the winner


def test_an_interrupted_retraining_goes_on(recorded: Recorded) -> None:
    config = final_config(recorded.config, num_epochs=2)
    tags = {names.KIND: "final", names.SWEEP: "mine", names.FINAL_OF: recorded.winner}
    tracker = recorded.store.start_run("final-mine", "digits", tags, parent_run_id=recorded.parent)
    seen: list[int] = []
    interrupted = train(
        config,
        tracker=tracker,
        checkpoint_dir=Path(recorded.tracking.dir) / "checkpoints" / tracker.run_id,
        on_epoch=lambda report: seen.append(report.epoch) or "continue",  # type: ignore[func-returns-value]
        stop_requested=lambda: bool(seen),
    )
    assert interrupted.status == "interrupted"
    final = recorded.finalize(retrain=True)
    assert final is not None
    assert (final.run_id, final.num_epochs, final.reading) == (tracker.run_id, 2, 1)
    assert recorded.lines[-1].startswith("going on with trial 0's configuration")
    points = recorded.store.client.get_metric_history(tracker.run_id, "train/loss")
    assert [point.step for point in points] == [0, 1]

    another = recorded.finalize(retrain=True, again=True)
    assert another is not None
    assert another.run_id != tracker.run_id
    assert another.metrics["test/accuracy"] == final.metrics["test/accuracy"]  # same seed, same weights
    finals = search_runs(recorded.tracking, f"tags.`{names.KIND}` = 'final'")
    assert len(finals) == 2


def test_the_commands_show_the_same_and_mistakes_are_told_in_a_line(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finalize", "mine", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["trial"], shown["reading"]) == ("harness.finalize/1", 0, 1)
    low, high = shown["interval_95"]
    assert low < shown["accuracy"] < high
    assert main(["ledger"]) == 0
    assert "sweep mine  reading 1 of 1" in capsys.readouterr().out
    assert main(["ledger", recorded.winner, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["readings"]) == 1
    assert main(["finalize", "nobody"]) == 2
    with pytest.raises(TrackingError, match="is no sweep"):
        finalize(recorded.tracking, recorded.store.start_run("alone", "digits", {}).run_id)
    assert "no run 'nobody'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("made_store")
def test_a_run_that_reads_the_test_split_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["data.max_train_samples=100", "trainer.max_epochs=1", "optim.schedule.kind=constant"]
    assert main(["train", *SMALL, *few, "evaluate_test=true", "tracking.run_name=x"]) == 0
    assert "(the test split was read once for this run)" in capsys.readouterr().out
    assert main(["train", "--resume", "x", "trainer.max_epochs=2"]) == 0
    assert "was read 2 times for this run; this is reading 2" in capsys.readouterr().out


def test_a_run_without_validation_images_chooses_no_epoch_and_no_sweep_has_one() -> None:
    from harness.config.compose import compose_sweep

    with pytest.raises(HarnessError, match=r"leaves no images by which to choose an epoch"):
        compose_run([*SMALL, "data.train_on_val=true"])
    with pytest.raises(ConfigError, match=r"trainer.end_after=9 is beyond trainer.max_epochs=3"):
        compose_run([*SMALL, "trainer.max_epochs=3", "trainer.end_after=9"])
    with pytest.raises(ConfigError, match="leaves no images to compare trials by"):
        compose_sweep([*SMALL, "data.train_on_val=true", "trainer.select=last"])
