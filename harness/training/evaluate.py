"""Evaluates a model on a split: its logits, everything that is measured of them, and their record.

`record.py` evaluates a run's best epoch; `harness.search.coordinator.evaluate_best` evaluates a sweep's best
checkpoint on the test split, which this module reads through `harness.data.held_out`. The measures are in
`harness.analysis.evaluation`, the record is in `record_evaluation.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.special import expit

from harness.analysis.calibration import fit_temperature
from harness.analysis.evaluation import Evaluation, evaluate
from harness.analysis.multilabel import MultiLabelEvaluation, evaluate_labels, multilabel_predictions
from harness.analysis.multilabel_metrics import choose_thresholds, multilabel_metrics
from harness.analysis.predictions import Predictions, predictions_of
from harness.config.schema import TrackingConfig
from harness.data import load_splits
from harness.data.datamodule import eval_batches
from harness.data.held_out import count_known, load_test
from harness.data.labelled_folder import load_labelled_folder
from harness.data.splits import ImageArrays, ImageSplits
from harness.errors import CheckpointError, DataError, HarnessError, TrackingError
from harness.models import ImageClassifier
from harness.tracking import Tracker, names
from harness.tracking.artifacts import load_predictions
from harness.tracking.choice import ChosenRun, choose
from harness.tracking.readings import count_readings, describe_reading, note_reading
from harness.tracking.runs import RunRecord, get_run
from harness.tracking.store import RunStore, open_store
from harness.training.checkpoints.checkpoint import Checkpoint, load_checkpoint, restore_classifier
from harness.training.devices.machine import Machine, machine_at_hand
from harness.training.pictures import record_pictures
from harness.training.record_evaluation import look_closely, record_evaluation
from harness.training.tta import Tta, predict_logits

Split = Literal["val", "test"]
AnyEvaluation = Evaluation | MultiLabelEvaluation
# Fitted on the validation images; None: there is none; "fit": not known, so the images are predicted for it.
Temperature = float | None | Literal["fit"]


SAME_LOSS = 1e-4  # by which the mean loss of the same predictions may differ: that of an epoch is in float32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunEvaluation:
    """The metrics of a recorded run's checkpoint on a split."""

    choice: ChosenRun
    evaluation: AnyEvaluation
    readings: str | None  # how often the test split was read, in words; None where it was not

    @property
    def run(self) -> RunRecord:
        return self.choice.run

    @property
    def checkpoint(self) -> Path:
        return self.choice.checkpoint

    @property
    def split(self) -> str:
        """Either "val" or "test", or the name by which the results on a folder are recorded."""
        return self.evaluation.split

    @property
    def metrics(self) -> dict[str, float]:
        """By name: "val/accuracy", "val/f1", …"""
        return self.evaluation.named()

    @property
    def notes(self) -> tuple[str, ...]:
        """What to bear in mind, one line each."""
        return self.evaluation.notes


def evaluate_run(
    tracking: TrackingConfig,
    reference: str | None,
    split: str,
    show: Callable[[str], None] = lambda line: None,
) -> RunEvaluation:
    """Score the best checkpoint of a recorded run on a split or a folder, and record the result with the run.

    Before the test split is read, this is noted in the tags of the run and of its sweep. A folder that holds
    test images counts as a reading, too.

    Args:
        reference: a run's id or name, or a sweep's name; None for the best trial of the sweep that ran last.
        split: "val", "test", or the path of a tree of class folders.
        show: called before the evaluation with a line that names the run and says why it was chosen.

    Raises:
        TrackingError: there is no such run, or it kept no checkpoint.
        DataError: there is no such folder, or its classes are not the run's.
        HarnessError: `evaluate_checkpoint` failed.
    """
    is_folder = split not in ("val", "test")
    if is_folder and not Path(split).expanduser().is_dir():
        raise DataError(
            f"--split={split} is neither val nor test nor a folder: give the path of a tree of class folders"
        )
    choice = choose(tracking, reference)
    show(choice.why)
    store = open_store(tracking)
    tracker = store.reopen_run(choice.run.run_id)
    temperature = temperature_of(choice.run)
    if is_folder:
        known_one = None if temperature == "fit" else temperature
        done = _evaluate_folder(store, choice, tracker, Path(split), known_one)
    else:
        readings = _note_reading(store, choice, split) if split == "test" else None
        name: Split = "test" if split == "test" else "val"
        evaluated = _evaluate(load_checkpoint(choice.checkpoint), name, temperature)
        recorded = choice.run.metrics if is_of_kept_checkpoint(choice.run) else {}
        known = {key.removeprefix(names.BEST) for key in recorded if key.startswith(names.BEST)}
        evaluated.record(tracker, closely=True, known=known)  # the run was chosen by what it recorded then
        done = RunEvaluation(choice, evaluated.evaluation, readings)
    tracker.finish("FINISHED")
    return done


def _evaluate_folder(
    store: RunStore, choice: ChosenRun, tracker: Tracker, path: Path, temperature: float | None
) -> RunEvaluation:
    checkpoint = load_checkpoint(choice.checkpoint)
    folder = load_labelled_folder(path, checkpoint.config.data, checkpoint.class_names)
    readings = None
    try:
        known = count_known(checkpoint.config.data, folder.hashes)
        notes = [
            f"{number:,} of {len(folder.images):,} images are {name} images of the run itself"
            for name, number in known.items()
            if number
        ]
        readings = _note_reading(store, choice, str(path)) if known["test"] else None
    except HarnessError as error:
        notes = [f"whether the run knows some of these images is not known: {error}"]
    model = _Model.of(checkpoint)
    thresholds = (
        _choose_thresholds(model, _load_splits(checkpoint)) if checkpoint.config.is_multilabel else None
    )
    evaluation = model.evaluate(folder.images, folder.name, temperature, thresholds)
    evaluation = replace(evaluation, notes=(*notes, *evaluation.notes))
    _Evaluated(evaluation, folder.images, model).record(tracker, closely=True)
    return RunEvaluation(choice, evaluation, readings)


def look_at_trial(tracking: TrackingConfig, run_id: str, path: Path) -> None:
    """Record with a trial's run the pictures of its validation images that not every trial gets.

    They show the predictions that the trial has recorded. Where these are gone, or are not those of this
    checkpoint, the images are predicted again, which is logged.

    Args:
        path: of its checkpoint.

    Raises:
        HarnessError: as `evaluate_checkpoint`; or the run cannot be opened.
    """
    checkpoint = load_checkpoint(path)
    arrays, model = _load_splits(checkpoint).val, _Model.of(checkpoint)
    evaluation: AnyEvaluation
    if checkpoint.config.is_multilabel:  # their recorded predictions are not read again
        evaluation = model.evaluate(arrays, "val", None)
    else:
        try:
            known = recorded_predictions(tracking, get_run(tracking, run_id), checkpoint, arrays)
            evaluation = evaluate(known)
        except TrackingError as error:
            log.info("the validation images are predicted again: %s", error)
            evaluation = model.evaluate(arrays, "val", None)
    tracker = open_store(tracking).reopen_run(run_id)
    look_closely(tracker, evaluation)
    _Evaluated(evaluation, arrays, model).record_pictures(tracker, closely=True)
    tracker.finish("FINISHED")


def recorded_predictions(
    tracking: TrackingConfig, run: RunRecord, checkpoint: Checkpoint, val: ImageArrays
) -> Predictions:
    """Return what a run has recorded that a checkpoint of it answers to the validation images.

    Raises:
        TrackingError: it has recorded none, or they may differ from those that the checkpoint would give now.
    """
    found = load_predictions(tracking, run)
    if not is_of_kept_checkpoint(run) or run.metrics.get(names.BEST_EPOCH) != checkpoint.epoch:
        why = "are of another checkpoint"
    elif (found.digest, found.class_names) != (val.digest, checkpoint.class_names):
        why = "are of other images"
    elif found.logits_dtype != "float32":
        why = "are rounded to float16, as there are many classes"
    # An artifact may wait for the store while the metrics of the same training have reached it.
    elif abs(float(found.loss.mean()) - run.metrics.get(names.BEST + "val/loss", math.inf)) > SAME_LOSS:
        why = "do not give the loss that it has recorded"
    else:
        return found
    raise TrackingError(f"those that run {run.run_id} ({run.name}) has recorded {why}")


def validation_predictions(
    tracking: TrackingConfig, run: RunRecord, checkpoint: Checkpoint, show: Callable[[str], None]
) -> Predictions:
    """Return a run's answers to its validation images: those that it has recorded, or else made again.

    Args:
        show: called with a line where they are made again.

    Raises:
        HarnessError: it has no validation images, or as `evaluate_checkpoint`.
    """
    arrays = _load_splits(checkpoint).val
    if not len(arrays):
        raise DataError(
            f"run {run.run_id} ({run.name}) was trained on its validation images too (data.train_on_val): "
            "nothing is left to choose by"
        )
    try:
        return recorded_predictions(tracking, run, checkpoint, arrays)
    except TrackingError as error:
        show(f"the validation images are predicted again: {error}")
        made = _Model.of(checkpoint).evaluate(arrays, "val", None)
        assert isinstance(made, Evaluation)  # of multi-label images there is no ensemble
        return made.predictions


def predict_split(checkpoint: Checkpoint, split: Split) -> tuple[ImageArrays, np.ndarray]:
    """Return a split's images, and a checkpoint's logits for them, float32 (N, K), as they are scored.

    Raises:
        CheckpointError: the data set has changed since.
        DataError: the images cannot be read.
    """
    val = _load_splits(checkpoint).val
    arrays = val if split == "val" else load_test(checkpoint.config.data)
    return arrays, _Model.of(checkpoint).predict(arrays)[0]


def is_of_kept_checkpoint(run: RunRecord) -> bool:
    """Tell whether what a run has recorded of its best epoch is of the checkpoint that it keeps.

    A run that was prolonged and has not finished may keep the checkpoint of a later epoch.
    """
    return run.status == "FINISHED"


def temperature_of(run: RunRecord) -> Temperature:
    """Return the temperature that a run has recorded for its kept checkpoint; "fit" if it is not known."""
    # The calibration error is recorded with every temperature, and also where no temperature was found.
    if not is_of_kept_checkpoint(run) or names.BEST + "val/ece" not in run.metrics:
        return "fit"
    return run.metrics.get(names.TEMPERATURE)


def _note_reading(store: RunStore, choice: ChosenRun, split: str) -> str:
    """Note that test images are read now, and return how often they have been read, in words."""
    run_id = choice.run.run_id
    ledger = run_id if choice.sweep is None else choice.sweep.parent.run_id
    tags = store.tags_of(ledger)
    note_reading(store, tags, ledger, run_id, f"harness evaluate --run {run_id} --split {split}")
    number = count_readings(tags) + 1
    return describe_reading(number, number, "run" if choice.sweep is None else "sweep")


def evaluate_checkpoint(
    path: Path,
    *,
    split: Split,
    tracker: Tracker | None = None,
    temperature: Temperature = "fit",
    closely: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint on a split of the data that it was trained on, and record the result.

    Args:
        temperature: with "fit", that of the test split is fitted here, on the model's answers to the
            validation images, if there are any; that of the validation split always is.
        closely: also record the pictures that are not drawn for every trial.

    Returns:
        Metrics named after the split: `test/accuracy`, `test/precision`, …

    Raises:
        CheckpointError: the checkpoint is damaged, or its data set has changed since.
        DataError: the images cannot be read.
        DivergedError: a logit is NaN or infinite.
    """
    evaluated = _evaluate(load_checkpoint(path), split, temperature)
    if tracker is not None:
        evaluated.record(tracker, closely)
    return evaluated.evaluation.named()


def _evaluate(checkpoint: Checkpoint, split: Split, temperature: Temperature) -> _Evaluated:
    splits = _load_splits(checkpoint)
    model = _Model.of(checkpoint)
    if split == "val":
        return _Evaluated(model.evaluate(splits.val, split, None), splits.val, model)
    arrays = load_test(checkpoint.config.data)
    if checkpoint.config.is_multilabel:
        thresholds = _choose_thresholds(model, splits)
        return _Evaluated(model.evaluate(arrays, split, None, thresholds), arrays, model)
    if temperature == "fit":
        temperature = None
        if len(splits.val):
            log.info("no temperature is recorded: the validation images are predicted to fit one")
            temperature = fit_temperature(model.predict(splits.val)[0], splits.val.labels)
    return _Evaluated(model.evaluate(arrays, split, temperature), arrays, model)


def plain_thresholds(checkpoint: Checkpoint, splits: ImageSplits) -> list[float]:
    """Return the thresholds of a multi-label model's labels, chosen without test-time augmentation."""
    _, plain = _Model.of(checkpoint).predict(splits.val)
    return choose_thresholds(expit(plain.astype(np.float64)), splits.val.labels).tolist()


def _choose_thresholds(model: _Model, splits: ImageSplits) -> np.ndarray | None:
    """Return the threshold of each label, chosen on the validation images; None if there are none."""
    if not len(splits.val):
        return None
    log.info("the validation images are predicted to choose the thresholds of the labels")
    return choose_thresholds(expit(model.predict(splits.val)[0].astype(np.float64)), splits.val.labels)


@dataclass(frozen=True)
class _Evaluated:
    """What a model was found to be worth on some images, to be recorded."""

    evaluation: AnyEvaluation
    arrays: ImageArrays
    model: _Model

    def record(self, tracker: Tracker, closely: bool, known: Container[str] = ()) -> None:
        record_evaluation(tracker, self.evaluation, known)
        if closely:
            look_closely(tracker, self.evaluation)
        self.record_pictures(tracker, closely)

    def record_pictures(self, tracker: Tracker, closely: bool) -> None:
        if isinstance(self.evaluation, MultiLabelEvaluation):
            return  # the pictures are of one class per image
        checkpoint = self.model.checkpoint
        record_pictures(
            tracker,
            self.evaluation.predictions,
            self.arrays,
            lambda: self.model.classifier,
            wish=checkpoint.config.evaluation.pictures,
            closely=closely,
        )


@dataclass(frozen=True)
class _Model:
    """A checkpoint's model, on this machine's device."""

    checkpoint: Checkpoint
    classifier: ImageClassifier
    machine: Machine

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Model:
        classifier = restore_classifier(checkpoint)
        machine = machine_at_hand(checkpoint.config.trainer, classifier.network)
        return cls(checkpoint, classifier.to(machine.device), machine)

    def predict(self, arrays: ImageArrays) -> tuple[np.ndarray, np.ndarray]:
        """Return logits with and without test-time augmentation, see `predict`."""
        config = self.checkpoint.config
        return predict(self.classifier, arrays, self.machine, config.data.batch_size, config.evaluation.tta)

    def evaluate(
        self,
        arrays: ImageArrays,
        split: str,
        temperature: float | None,
        thresholds_K: np.ndarray | None = None,
    ) -> AnyEvaluation:
        """Predict the images and measure the predictions."""
        logits, plain = self.predict(arrays)
        evaluation = evaluate_logits(
            logits, arrays, self.checkpoint.class_names, split, temperature, thresholds_K
        )
        if self.checkpoint.config.evaluation.tta == "none":
            return evaluation
        if isinstance(evaluation, MultiLabelEvaluation):
            evaluation.metrics["mAP_no_tta"] = multilabel_metrics(plain, arrays.labels)["mAP"]
        else:
            evaluation.metrics["accuracy_no_tta"] = float((plain.argmax(1) == arrays.labels).mean())
        return evaluation


def _load_splits(checkpoint: Checkpoint) -> ImageSplits:
    splits = load_splits(checkpoint.config.data)
    if splits.digest != checkpoint.data_digest:
        raise CheckpointError(
            f"{checkpoint.path} was trained on {checkpoint.data_name} {checkpoint.data_digest[:12]}, but "
            f"{checkpoint.config.data.dir} now gives {splits.name} {splits.digest[:12]}: put the data back"
        )
    return splits


@torch.inference_mode()
def predict(
    classifier: ImageClassifier, arrays: ImageArrays, machine: Machine, batch_size: int, tta: Tta = "none"
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, float32 (N, K) on the CPU: first with test-time augmentation, then without it."""
    classifier.eval()
    averaged, plain = [], []
    for images, _ in eval_batches(arrays, batch_size):
        with machine.autocast():
            logits = predict_logits(classifier, images.to(machine.device, non_blocking=True), tta)
        averaged.append(logits[0].float())
        plain.append(logits[1].float())
    return torch.cat(averaged).cpu().numpy(), torch.cat(plain).cpu().numpy()


def evaluate_logits(
    logits_NK: np.ndarray,
    arrays: ImageArrays,
    class_names: tuple[str, ...],
    split: str,
    temperature: float | None = None,
    thresholds_K: np.ndarray | None = None,
) -> AnyEvaluation:
    """Return all measures of a model's logits on a split's images.

    Args:
        temperature: see `harness.analysis.evaluation.evaluate`.
        thresholds_K: of multi-label images, see `harness.analysis.multilabel.evaluate_labels`.

    Raises:
        DivergedError: a logit is NaN or infinite.
    """
    if arrays.labels.ndim == 2:
        return evaluate_labels(
            multilabel_predictions(
                logits_NK,
                arrays.labels,
                split=split,
                class_names=class_names,
                digest=arrays.digest,
                index_N=arrays.indices,
            ),
            thresholds_K,
        )
    predictions = predictions_of(
        logits_NK,
        arrays.labels,
        split=split,
        class_names=class_names,
        digest=arrays.digest,
        index_N=arrays.indices,
    )
    return evaluate(predictions, temperature)
