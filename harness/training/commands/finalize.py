"""`harness finalize`: a sweep's winner, as it is or trained again on all images, on the test split, once.

`harness.cli` and `harness.api` call `finalize`. What was found is kept in a tag of the sweep's run, and a
second call shows it instead of reading the test split again. A retraining is a run of its own, of kind
"final"; if it is interrupted, the same call goes on with it. Read on in `train.py` and `evaluate.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness.analysis.layout import without_tta
from harness.analysis.optimism import wilson
from harness.config.schema import RunConfig, TrackingConfig
from harness.config.validation import validate
from harness.data import load_splits
from harness.data.held_out import load_test
from harness.errors import TrackingError
from harness.signals import StopSignals
from harness.tracking import names
from harness.tracking.choice import ChosenRun, RecordedSweep, choose
from harness.tracking.moved import found_path
from harness.tracking.readings import count_readings, note_reading, number_of_last
from harness.tracking.runs import get_run, read_config, search_runs
from harness.tracking.store import RunStore, open_store
from harness.training.checkpoints.checkpoint import load_checkpoint
from harness.training.command import answer_signal, print_epoch, sole_process
from harness.training.devices.machine import prepare_process
from harness.training.evaluate import evaluate_checkpoint, temperature_of
from harness.training.train import train


@dataclass(frozen=True)
class Final:
    """A sweep's winner on the test split."""

    sweep: str
    trial: int  # the winner
    run_id: str  # whose checkpoint was tested: the winner's own, or that of the retraining
    is_retrained: bool  # on the training and the validation images
    num_epochs: int  # that the tested checkpoint was trained for
    num_train: int  # images that it was trained on
    num_test: int
    num_correct: int
    metrics: dict[str, float]  # "test/accuracy", …
    reading: int  # which reading of the test split for this sweep that was, from 1
    checkpoint: str
    is_new: bool = True  # False: found by an earlier call, and only shown by this one

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_test

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy over test images (Wilson, 1927).

        It holds for this one trained model: the spread over seeds is no part of it.
        """
        return wilson(self.accuracy, self.num_test)

    def __str__(self) -> str:
        low, high = self.interval
        what = (
            f"trained again on {self.num_train:,} training and validation images, {_epochs(self.num_epochs)}"
            if self.is_retrained
            else f"as it was trained ({self.num_train:,} images, {_epochs(self.num_epochs)})"
        )
        return (
            f"final: trial {self.trial} of sweep {self.sweep}, {what}: test/accuracy {self.accuracy:.4f}"
            f"{without_tta(self.metrics, 'test')} (95 % interval {low:.4f} to {high:.4f} over "
            f"{self.num_test:,} test images; reading "
            f"{self.reading} of the test split for this sweep)"
        )


def finalize(
    tracking: TrackingConfig,
    reference: str | None = None,
    *,
    retrain: bool = False,
    again: bool = False,
    show: Callable[[str], None] = print,
) -> Final | None:
    """Evaluate a sweep's winner on the test split, or show what an earlier call has found.

    Args:
        reference: a sweep's name, or its run's id; None for the sweep that ran last.
        retrain: first train the winner's configuration again, on the training and the validation images. No
            images are left to choose an epoch by: it trains for as many epochs as the winner's kept
            checkpoint had, with the same seed and schedule, and keeps the last.
        again: evaluate although an earlier call has.
        show: called with lines about what is done.

    Returns:
        The result; None if the retraining was interrupted, and the same call goes on with it.

    Raises:
        TrackingError: there is no such sweep, it has no best trial, or its checkpoint is gone.
        HarnessError: the training or the evaluation failed.
    """
    if reference is not None and (run := get_run(tracking, reference)).kind != "sweep":
        raise TrackingError(f"run {run.run_id} ({run.name}) is no sweep: name the sweep to finalize")
    choice = choose(tracking, reference)
    if choice.sweep is None:
        raise TrackingError(f"there is no sweep in {tracking.dir} to finalize: run `harness sweep` first")
    sweep = choice.sweep
    if validate(RunConfig, read_config(choice.run)).is_multilabel:
        raise TrackingError(
            f"harness finalize tests an accuracy, and sweep {sweep.name} is of multi-label images: "
            f"`harness evaluate --run {sweep.name} --split test` gives their test/mAP"
        )
    show(choice.why)
    if sweep.parent.status != "FINISHED":
        show(f"note: sweep {sweep.name} has not ended; a better trial may come")
    earlier = _read(sweep.parent.tags)
    if earlier is not None and not again:
        _say_what_differs(earlier, choice, retrain, show)
        return replace(earlier, is_new=False)
    store = open_store(tracking)
    number = count_readings(sweep.parent.tags) + 1
    if not retrain:
        found = _test_as_it_is(store, choice, number, may_reuse=not again, show=show)
    else:
        run_id = _retrain(store, tracking, choice, earlier, show)
        if run_id is None:
            return None
        checkpoint = found_path(str(_folder(tracking, run_id) / "best.ckpt"), tracking.dir)
        metrics = _read_test(store, choice, run_id, run_id, checkpoint, f"--retrain{' --again' * again}")
        found = _final(choice, run_id, checkpoint, metrics, number)
    store.note(sweep.parent.run_id, {names.FINAL: json.dumps(asdict(found))})
    return found


def _read(tags: dict[str, str]) -> Final | None:
    return Final(**json.loads(tags[names.FINAL])) if names.FINAL in tags else None


def _say_what_differs(earlier: Final, choice: ChosenRun, retrain: bool, show: Callable[[str], None]) -> None:
    """Say that the result is an earlier one, and what of it is not what was asked for now."""
    differs = []
    if earlier.trial != choice.run.trial:
        differs.append(f"the best trial was {earlier.trial} then, and is {choice.run.trial} now")
    if earlier.is_retrained != retrain:
        differs.append("it was trained again then" if earlier.is_retrained else "it was not trained again")
    told = f" ({'; '.join(differs)})" if differs else ""
    show(f"this sweep was finalized before{told}: --again reads the test split once more")


# ── the winner as it is ───────────────────────────────────────────────────────────────────────────


def _test_as_it_is(
    store: RunStore, choice: ChosenRun, number: int, *, may_reuse: bool, show: Callable[[str], None]
) -> Final:
    """Return the result of the winner's own checkpoint; what the sweep has read itself is not read again."""
    assert choice.sweep is not None
    parent, run_id = choice.sweep.parent, choice.run.run_id
    known = {key: value for key, value in parent.results.items() if key.startswith("test/")}
    if may_reuse and parent.tags.get(names.TESTED_RUN) == run_id and "test/accuracy" in known:
        show("the sweep has read the test split with this checkpoint: it is not read again")
        return _final(choice, run_id, choice.checkpoint, known, number_of_last(parent.tags, run_id))
    metrics = _read_test(
        store, choice, run_id, parent.run_id, choice.checkpoint, "" if may_reuse else "--again"
    )
    store.note(parent.run_id, {names.TESTED_RUN: run_id})
    return _final(choice, run_id, choice.checkpoint, metrics, number)


def _read_test(
    store: RunStore, choice: ChosenRun, run_id: str, record_in: str, checkpoint: Path, option: str
) -> dict[str, float]:
    """Read the test split, which is noted before, and record the evaluation in the run `record_in`."""
    assert choice.sweep is not None
    parent = choice.sweep.parent
    command = f"harness finalize {choice.sweep.name} {option}".rstrip()
    note_reading(store, store.tags_of(parent.run_id), parent.run_id, run_id, command)
    prepare_process(None, load_checkpoint(checkpoint).config.trainer.keep_memory)
    tracker = store.reopen_run(record_in)
    known = temperature_of(choice.run) if run_id == choice.run.run_id else "fit"
    metrics = evaluate_checkpoint(checkpoint, split="test", tracker=tracker, temperature=known, closely=True)
    tracker.finish("FINISHED")
    return metrics


def _final(choice: ChosenRun, run_id: str, checkpoint: Path, metrics: dict[str, float], number: int) -> Final:
    assert choice.sweep is not None
    assert choice.run.trial is not None
    tested = load_checkpoint(checkpoint)
    data = tested.config.data
    num_test = len(load_test(data))
    return Final(
        sweep=choice.sweep.name,
        trial=choice.run.trial,
        run_id=run_id,
        is_retrained=run_id != choice.run.run_id,
        num_epochs=tested.epoch + 1,
        num_train=len(load_splits(data).train),
        num_test=num_test,
        num_correct=round(metrics["test/accuracy"] * num_test),
        metrics=metrics,
        reading=number,
        checkpoint=str(checkpoint),
    )


# ── the retraining ────────────────────────────────────────────────────────────────────────────────


def final_config(winner: RunConfig, num_epochs: int) -> RunConfig:
    """Return the configuration that trains a winner again on the training and the validation images.

    Args:
        num_epochs: of the winner's kept checkpoint.
    """
    values = winner.to_dict()
    values["data"]["train_on_val"] = True
    values["trainer"] |= {
        "end_after": num_epochs,
        "select": "last",
        "early_stopping_patience": None,
        "devices": 1,
    }
    return validate(RunConfig, values)


def _retrain(
    store: RunStore,
    tracking: TrackingConfig,
    choice: ChosenRun,
    earlier: Final | None,
    show: Callable[[str], None],
) -> str | None:
    """Train the winner's configuration on all images; return the run, or None if it was interrupted."""
    assert choice.sweep is not None
    winner = validate(RunConfig, read_config(choice.run))
    num_epochs = load_checkpoint(choice.checkpoint).epoch + 1
    config = final_config(winner, num_epochs)
    config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"dir": tracking.dir})})
    run_id, status = _begun(tracking, choice, choice.sweep)
    if run_id is not None and earlier is not None and run_id == earlier.run_id:
        run_id = None  # it is done: --again begins another one
    elif status == "FINISHED":
        return run_id  # killed between the training and its test
    begins = "going on with" if run_id else "training"
    devices = " (on one device; its trials used more)" if winner.trainer.devices > 1 else ""
    show(
        f"{begins} trial {choice.run.trial}'s configuration on training and validation images: "
        f"{_epochs(num_epochs)} of the {winner.trainer.max_epochs} of its schedule, as its checkpoint had, "
        f"seed {config.seed}{devices}"
    )
    tags = {
        names.KIND: "final",
        names.SWEEP: choice.sweep.name,
        names.FINAL_OF: choice.run.run_id,
    }
    parent = choice.sweep.parent
    experiment = store.client.get_experiment(parent.experiment_id).name
    name = f"final-{choice.sweep.name}"
    prepare_process(config.trainer.threads, config.trainer.keep_memory)
    with StopSignals(answer_signal) as signals:
        tracker = store.start_run(name, experiment, tags, parent_run_id=parent.run_id, run_id=run_id)
        folder = _folder(tracking, tracker.run_id)
        with sole_process(folder):
            result = train(
                config,
                tracker=tracker,
                checkpoint_dir=folder,
                on_epoch=print_epoch,
                stop_requested=lambda: signals.count > 0,
            )
    if result.status == "interrupted":
        show("interrupted; repeat the command to go on")
        return None
    return tracker.run_id


def _begun(tracking: TrackingConfig, choice: ChosenRun, sweep: RecordedSweep) -> tuple[str | None, str]:
    """Return the last retraining of the winner and its status, if there is one."""
    tags = {names.PARENT: sweep.parent.run_id, names.FINAL_OF: choice.run.run_id}
    found = search_runs(tracking, " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items()))
    return (found[-1].run_id, found[-1].status) if found else (None, "")


def _folder(tracking: TrackingConfig, run_id: str) -> Path:
    return Path(tracking.dir) / "checkpoints" / run_id


def _epochs(number: int) -> str:
    return f"{number} epoch" + "s" * (number != 1)
