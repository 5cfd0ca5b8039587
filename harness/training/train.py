"""One training run, from its configuration to its record.

`harness.training.command` (`harness train`) and `harness.search.trial.run` (a sweep's trial) call `train`.
Read on in `fit.py` for the training loop, and in `record.py` for what is recorded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl

from harness.analysis.evaluation import Evaluation
from harness.config.schema import RunConfig
from harness.credentials import shown
from harness.data import as_loaded, load_splits
from harness.data.datamodule import ImageDataModule
from harness.data.features.datamodule import FeatureDataModule
from harness.data.splits import ImageSplits
from harness.errors import HarnessError
from harness.models import FreezeReport, ImageClassifier
from harness.tracking import Tracker, names
from harness.training.cached_features import load_or_compute_features
from harness.training.callbacks import EpochRecorder, Interrupted
from harness.training.checkpoints.checkpoint import ModelFacts, load_checkpoint, restore_classifier
from harness.training.checkpoints.checkpoint_io import forget_previous, make_room
from harness.training.continued import Origin, begin_with, measure_forgetting
from harness.training.costs import images_per_second, measure_costs, peak_memory, training_costs
from harness.training.devices.collectives import current_ranks
from harness.training.devices.machine import Machine, resolve_machine
from harness.training.devices.machine_load import MachineLoad
from harness.training.devices.nvml import gpus_of
from harness.training.evaluate import AnyEvaluation
from harness.training.fit import fit
from harness.training.image_views import describe_regime
from harness.training.module import ClassifierModule
from harness.training.optimisation.losses import class_weights
from harness.training.pictures import (
    ExamplesOfEpochs,
    record_learning_curves,
    record_pictures,
    wants_all,
)
from harness.training.prepare import prepare_model
from harness.training.record import record_best, record_setup
from harness.training.result import Decision, EpochReport, RunResult, Status
from harness.training.teacher import Teacher, find_teacher, load_teacher

log = logging.getLogger(__name__)


def train(
    config: RunConfig,
    *,
    tracker: Tracker,
    checkpoint_dir: Path,
    on_epoch: Callable[[EpochReport], Decision] | None = None,
    stop_requested: Callable[[], bool] | None = None,
    closely: bool = False,
) -> RunResult:
    """Train, choose the best epoch by `trainer.monitor`, evaluate and record it.

    An interrupted run goes on from the checkpoints in `checkpoint_dir`, with the epoch after its last
    complete one (`resume_point.py`), and ends with the weights of an uninterrupted run. The tracker's run is
    always closed, also where training fails.

    All ranks that train one model together (`launch_ranks.py`) call this with the same configuration; rank 0
    alone records, decides and writes checkpoints.

    Args:
        tracker: records the run; a SilentTracker on all ranks but 0.
        checkpoint_dir: the run's own folder for `best.ckpt` and `last.ckpt`.
        on_epoch: called on rank 0 after each epoch; its answer may end the run early.
        stop_requested: called after each batch; on True the run ends with status "interrupted", and a later
            call with the same folder resumes it.
        closely: record all pictures of the result, of which a sweep's trials get but a few (`look_closely`).

    Returns:
        Status, score, metrics of the best epoch, and its checkpoint.

    Raises:
        DivergedError: the loss became NaN or infinite.
        HarnessError: data, model or checkpoint do not fit the configuration.
    """
    started = time.perf_counter()
    recorder = EpochRecorder(tracker, config.trainer, on_epoch)
    best = checkpoint_dir / "best.ckpt"
    ranks = current_ranks()
    status: Status
    costs: dict[str, float] = {}
    forgotten: dict[str, float] = {}
    try:
        ready = _prepare(config, checkpoint_dir)
        config, splits, machine, origin = ready.config, ready.splits, ready.machine, ready.origin
        if ranks.is_zero:
            record_setup(tracker, config, splits, ready.freezing, machine, ready.teacher, origin)
            has_examples = len(splits.val) > 0 and not splits.is_multilabel
            if has_examples and wants_all(config.evaluation.pictures, closely):
                recorder.on_better = ExamplesOfEpochs(tracker, splits.val, splits.class_names)
        try:
            data = choose_data(ready.classifier, splits, config, machine, stop_requested)
            _record_features(tracker, config, data)
            num_batches = len(data.train_dataloader())
            module = build_module(ready.classifier, config, splits, num_batches, ready.teacher, origin)
            _watch_machine(recorder, config, machine)
            status = fit(module, data, recorder, machine, checkpoint_dir, stop_requested)
        except Interrupted:
            status = "interrupted"
        is_recorder = status != "interrupted" and ranks.is_zero
        if is_recorder:
            closely = closely and config.evaluation.pictures != "none"
            evaluation = record_best(tracker, config, splits, recorder, machine, best, closely)
            forget_previous(checkpoint_dir)
        seconds = time.perf_counter() - started  # before the costs: measuring them is not training
        if is_recorder:
            costs = measure_costs(
                best, splits.train.gather(np.array([0]))[0], recorder.history, machine
            ) | training_costs(config, data, len(splits.class_names), len(recorder.history))
            forgotten = _forgotten(tracker, origin, config, splits, best, machine)
            if evaluation is not None:
                _record_pictures(tracker, config, splits, recorder, evaluation, machine, best, closely)
    except BaseException as error:
        tracker.set_tags({"harness.failure": shown(f"{type(error).__name__}: {error}")[:500]})
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        raise
    if is_recorder:  # an interrupted run keeps the seconds that its last complete epoch has logged
        trained_seconds = {names.TRAINED_SECONDS: recorder.seconds_before + seconds}
        tracker.log_summary(
            {**trained_seconds, **costs, **images_per_second(costs), **peak_memory(machine.device)}
        )
    tracker.set_tags({names.PRUNED: "true"} if status == "pruned" else {})
    tracker.finish("KILLED" if status == "interrupted" else "FINISHED")
    return _result(tracker.run_id, status, recorder, best, seconds, costs, forgotten)


@dataclass(frozen=True)
class _Ready:
    """All that a run needs before its first step."""

    config: RunConfig  # it names the data set that data=auto has found: a resumed run takes it, too
    splits: ImageSplits
    classifier: ImageClassifier
    freezing: FreezeReport
    origin: Origin | None
    teacher: Teacher | None
    machine: Machine


def _prepare(config: RunConfig, checkpoint_dir: Path) -> _Ready:
    """Load the images, the model, and what it begins with or learns from; decide about the machine."""
    ranks = current_ranks()
    resolve_machine(config.trainer)  # raises before anything is loaded if the device is missing
    pl.seed_everything(config.seed, verbose=False)
    splits = load_splits(config.data)
    config = config.model_copy(update={"data": as_loaded(config.data, splits)})
    config, origin, splits = begin_with(config, splits)
    classifier, freezing = prepare_model(config, splits, origin)
    teacher = load_teacher(ranks.from_zero(lambda: find_teacher(config)), config, splits.class_names)
    machine = resolve_machine(config.trainer, classifier.network)
    copies = 1 if config.average.kind == "none" else 2
    ranks.from_zero(lambda: make_room(checkpoint_dir, classifier, copies))
    return _Ready(config, splits, classifier, freezing, origin, teacher, machine)


def _record_features(tracker: Tracker, config: RunConfig, data: ImageDataModule | FeatureDataModule) -> None:
    """Record whether the run trains on cached activations, on rank 0."""
    if current_ranks().is_zero:
        cached_views = data.train.num_views if isinstance(data, FeatureDataModule) else None
        tracker.log_params({"features": describe_regime(config, cached_views)})


def _forgotten(
    tracker: Tracker,
    origin: Origin | None,
    config: RunConfig,
    splits: ImageSplits,
    best: Path,
    machine: Machine,
) -> dict[str, float]:
    """Measure, say and record what is forgotten of the model that the run began with, or why it is not."""
    if origin is None:
        return {}
    try:
        found = measure_forgetting(origin, config, splits, best, machine)
    except HarnessError as error:
        log.warning("forgetting is not measured: %s", error)
        tracker.set_tags({names.FORGETTING: f"not measured: {error}"})
        return {}
    log.info("%s", found)
    tracker.set_tags({names.FORGETTING: str(found)})
    tracker.log_summary(found.metrics)
    return found.metrics


def build_module(
    classifier: ImageClassifier,
    config: RunConfig,
    splits: ImageSplits,
    num_batches: int,
    teacher: Teacher | None,
    origin: Origin | None = None,
) -> ClassifierModule:
    """Return the classifier with its loss and optimiser, as a run of this configuration trains it."""
    labels, num_classes = splits.train.labels, len(splits.class_names)
    weights = class_weights(config.loss, labels, num_classes)
    counts = None if splits.is_multilabel else np.bincount(labels, minlength=num_classes)
    facts = model_facts(config, splits, teacher, origin)
    return ClassifierModule(classifier, config, facts, num_batches, weights, teacher, counts)


def _watch_machine(recorder: EpochRecorder, config: RunConfig, machine: Machine) -> None:
    """Let the recorder record the machine's load and energy with each epoch, and say what is measured."""
    if current_ranks().is_zero and config.tracking.system_metrics:
        recorder.load = MachineLoad(gpus_of(machine.device, config.trainer.devices))
        recorder.tracker.set_tags({names.ENERGY: recorder.load.describe_energy()})


def _record_pictures(
    tracker: Tracker,
    config: RunConfig,
    splits: ImageSplits,
    recorder: EpochRecorder,
    evaluation: AnyEvaluation,
    machine: Machine,
    best: Path,
    closely: bool,
) -> None:
    wish = config.evaluation.pictures
    record_learning_curves(tracker, recorder.history, recorder.best_epoch, recorder.monitor.metric, wish)
    if not isinstance(evaluation, Evaluation):
        return  # the others are of one class per image
    record_pictures(
        tracker,
        evaluation.predictions,
        splits.val,
        lambda: restore_classifier(load_checkpoint(best)).to(machine.device),
        wish=wish,
        closely=closely,
    )


def _result(
    run_id: str,
    status: Status,
    recorder: EpochRecorder,
    best: Path,
    seconds: float,
    costs: dict[str, float],
    forgotten: dict[str, float],
) -> RunResult:
    metrics = recorder.history[recorder.best_epoch] if recorder.history else {}
    return RunResult(
        run_id=run_id,
        status=status,
        score=metrics.get(recorder.monitor.metric, float("nan")),
        best_epoch=recorder.best_epoch if recorder.history else -1,
        metrics={**metrics, **forgotten},
        checkpoint=best if best.is_file() else None,
        seconds=seconds,
        costs=costs,
    )


def choose_data(
    classifier: ImageClassifier,
    splits: ImageSplits,
    config: RunConfig,
    machine: Machine,
    stop_requested: Callable[[], bool] | None,
) -> ImageDataModule | FeatureDataModule:
    """Return cached activations of the frozen backbone where that is possible, otherwise images.

    With activations, the classifier is also set to take them in place of images.

    Raises:
        ConfigError: the augmentation does not fit the images.
        Interrupted: `stop_requested` returned True while activations were computed.
    """
    pin_memory = machine.device.type == "cuda"
    images = ImageDataModule(
        splits, config.data, config.augment, config.seed, pin_memory=pin_memory, rank_info=current_ranks()
    )
    features = load_or_compute_features(classifier, images, config, machine, stop_requested)
    return images if features is None else features


def model_facts(
    config: RunConfig, splits: ImageSplits, teacher: Teacher | None = None, origin: Origin | None = None
) -> ModelFacts:
    """Return the facts about model and data that every checkpoint holds beside the weights."""
    return ModelFacts(
        config.to_dict(),
        splits.class_names,
        splits.mean,
        splits.std,
        splits.name,
        splits.digest,
        None if teacher is None else teacher.facts.digest,
        None if origin is None else origin.digest,
    )
