"""Records a run in its tracker: configuration and environment at the start, results at the end.

`train.py` calls `record_setup` and `record_best`; the metrics of each epoch are logged by `callbacks.py`.
`harness.search.report.parent_run` records a sweep's data with `record_data`.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml

from harness.analysis.evaluation import Evaluation
from harness.config.schema import RunConfig
from harness.data.splits import ImageSplits
from harness.files import as_csv
from harness.models import FreezeReport
from harness.tracking import Tracker, names
from harness.tracking.environment import capture_environment, record_environment
from harness.tracking.moved import recorded_path
from harness.tracking.readings import next_reading
from harness.training.callbacks import EpochRecorder
from harness.training.checkpoints.checkpoint import load_checkpoint, restore_classifier
from harness.training.continued import Origin
from harness.training.devices.machine import Machine
from harness.training.evaluate import AnyEvaluation, evaluate_checkpoint, evaluate_logits, predict
from harness.training.optimisation.averaging import kept_weights
from harness.training.record_evaluation import look_closely, record_evaluation
from harness.training.teacher import Teacher, describe_data

log = logging.getLogger(__name__)


def record_setup(
    tracker: Tracker,
    config: RunConfig,
    splits: ImageSplits,
    freezing: FreezeReport,
    machine: Machine,
    teacher: Teacher | None = None,
    origin: Origin | None = None,
) -> None:
    """Log and record data, model, teacher, machine, configuration, environment, before the run starts."""
    log.info("data: %s, %d + %d images, %s", splits.name, len(splits.train), len(splits.val), splits.source)
    log.info("model: %s, %s", config.model.kind, freezing)
    log.info("machine: %s", ", ".join(machine.describe().values()))
    counts = {"trainable": freezing.trainable_parameters, "frozen": freezing.frozen_parameters}
    tracker.log_params({**config.to_dict(), "parameters": counts, "machine": machine.describe()})
    tracker.log_text(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), names.CONFIG_FILE)
    tracker.set_tags({"harness.fallback_data": str(splits.is_fallback).lower()})
    record_environment(tracker, capture_environment(machine.describe()["device_name"]))
    record_data(tracker, splits)
    if changed := splits.changed_labels():
        log.info("data: %d of %d training labels are changed", len(changed), len(splits.train))
        tracker.log_text(as_csv(changed), names.CHANGED_LABELS)
    if teacher is not None:
        _record_teacher(tracker, teacher, splits)
    if origin is not None:
        described = origin.describe(splits.class_names)
        log.info("begins with: %s", described)
        facts = {"run_id": origin.run_id, "digest": origin.digest, "what": described}
        tracker.log_params({"init": facts})


def _record_teacher(tracker: Tracker, teacher: Teacher, splits: ImageSplits) -> None:
    """Log and record which network the run learns from, and what is known of it."""
    log.info("teacher: %s", teacher.describe())
    facts = asdict(teacher.facts) | {"trained_with": describe_data(teacher.facts, splits.digest)}
    tracker.log_params({"teacher": facts})


def record_data(tracker: Tracker, splits: ImageSplits) -> None:
    """Record the data sets by name and digest: of all images for training, of its own for validation."""
    sets = (("training", splits.train, splits.digest), ("validation", splits.val, splits.val_digest))
    for context, arrays, digest in sets:
        if not len(arrays):  # data.train_on_val
            continue
        tracker.log_data(
            name=splits.name,
            digest=digest,
            source=splits.source,
            num_rows=len(arrays),
            class_names=splits.class_names,
            context=context,
        )


def record_best(
    tracker: Tracker,
    config: RunConfig,
    splits: ImageSplits,
    recorder: EpochRecorder,
    machine: Machine,
    best: Path,
    closely: bool,
) -> AnyEvaluation | None:
    """Evaluate the best checkpoint on validation and, if configured, on test; log it as a model.

    Args:
        closely: also record the figures that are not drawn for every trial.

    Returns:
        The evaluation on validation; None where there are no validation images.
    """
    kept = kept_weights(config, recorder.best_epoch)
    tracker.set_tags({names.CHECKPOINT: recorded_path(best, config.tracking.dir), names.WEIGHTS: kept})
    evaluation = None
    if len(splits.val):
        evaluation = _record_validation(tracker, config, splits, recorder, machine, best, closely)
    tracker.log_summary({names.BEST_EPOCH: recorder.best_epoch})
    if config.tracking.log_model:
        example = splits.train.gather(np.arange(min(4, len(splits.train))))
        named = {} if evaluation is None else evaluation.named()
        metrics = {names.BEST + name: value for name, value in named.items()}
        tracker.log_model(best, input_example=example, class_names=splits.class_names, metrics=metrics)
    if config.evaluate_test:
        tracker.set_tags(next_reading(None, tracker.run_id, "harness train").to_tag())
        temperature = evaluation.temperature if isinstance(evaluation, Evaluation) else None
        evaluate_checkpoint(best, split="test", tracker=tracker, temperature=temperature, closely=closely)
    return evaluation


def _record_validation(
    tracker: Tracker,
    config: RunConfig,
    splits: ImageSplits,
    recorder: EpochRecorder,
    machine: Machine,
    best: Path,
    closely: bool,
) -> AnyEvaluation:
    if recorder.best_logits is not None and recorder.best_logits_epoch == recorder.best_epoch:
        logits = recorder.best_logits.numpy()  # this process has validated that epoch itself
    else:
        classifier = restore_classifier(load_checkpoint(best)).to(machine.device)
        logits, _ = predict(classifier, splits.val, machine, config.data.batch_size, config.evaluation.tta)
    evaluation = evaluate_logits(logits, splits.val, splits.class_names, "val")
    # The metrics logged after the epoch take precedence, because pruning and selection used them. The
    # evaluation supplies the others.
    logged = recorder.best_metrics
    evaluation.metrics.update({name.removeprefix("val/"): value for name, value in logged.items()})
    record_evaluation(tracker, evaluation, known=logged)
    if closely:
        look_closely(tracker, evaluation)
    return evaluation
