"""The command `harness cross-validate`: a configuration is trained once for each fold, which validates it.

`harness.cli` and `harness.api` call `cross_validate`. A parent run in MLflow has a child run for each fold,
and records the mean of their scores, and every training image's prediction by the model that was not trained
on it. Killed anywhere, the same call goes on: finished folds are read back from their records. Read on in
`train.py`, and in `harness.data.folds` for how images are divided.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harness.analysis.evaluation import Evaluation, evaluate
from harness.analysis.folds import EXPLAINED, estimate_folds
from harness.analysis.layout import markdown_table
from harness.analysis.predictions import Predictions, predictions_of
from harness.analysis.seeds import Estimate, is_within_one
from harness.config.schema import RunConfig
from harness.data import ImageSplits, load_splits
from harness.errors import ConfigError, TrackingError
from harness.files import as_csv
from harness.signals import StopSignals
from harness.tracking import Tracker, names
from harness.tracking.artifacts import load_predictions
from harness.tracking.runs import RunRecord, get_run, search_runs
from harness.tracking.store import RunStore, open_store
from harness.training.command import answer_signal, print_epoch, sole_process
from harness.training.devices.machine import prepare_process
from harness.training.record_evaluation import look_closely, record_evaluation
from harness.training.train import train

DEFAULT_FOLDS = 5
# Sections and settings on which no result depends; with others, a repeated command goes on.
NOT_PART_OF_IDENTITY = {
    "tracking": True,
    "data": {"dir", "cache_dir", "download", "fold", "feature_cache_gb", "max_memory_share", "num_workers"},
    "trainer": {"device", "threads", "keep_memory", "compile"},
    "evaluation": {"pictures"},
}
OUT_OF_FOLD = "oof"  # the split's name in the records


@dataclass(frozen=True)
class Fold:
    """A fold that has been trained and validated."""

    fold: int
    run_id: str
    score: float
    best_epoch: int  # 0-based
    num_train: int
    num_val: int
    metrics: dict[str, float]  # "val/accuracy", …, of the kept epoch


@dataclass(frozen=True)
class CrossValidation:
    """A configuration's scores over all folds."""

    run_id: str  # of the parent
    name: str
    metric: str
    folds: tuple[Fold, ...]
    estimates: dict[str, Estimate]  # by metric, over the folds
    evaluation: Evaluation  # of the out-of-fold predictions of all images

    @property
    def score(self) -> Estimate:
        return self.estimates[self.metric]

    @property
    def sentence(self) -> str:
        return f"{len(self.folds)} folds: {self.metric} {self.score}"

    def __str__(self) -> str:
        found = self.evaluation
        rows = [
            f"fold {one.fold}  {self.metric} {one.score:.4f}  epoch {one.best_epoch + 1}  trained on "
            f"{one.num_train:,}, validated on {one.num_val:,} images  run {one.run_id}"
            for one in self.folds
        ]
        right = int(found.predictions.correct.sum())
        return "\n".join(
            [
                *rows,
                self.sentence,
                EXPLAINED,
                f"out of fold: {right:,} of {len(found.predictions):,} images right, each answered by the "
                f"model that was not trained on it: accuracy {found.metrics['accuracy']:.4f}, balanced "
                f"accuracy {found.metrics['balanced_accuracy']:.4f}, macro F1 {found.metrics['f1']:.4f}",
                f"run {self.run_id} ({self.name})",
            ]
        )


def cross_validate(config: RunConfig, show: Callable[[str], None] = print) -> CrossValidation | None:
    """Train and validate a configuration on each fold, or go on with that; record the mean and all answers.

    All folds train with the configuration's seed. The test split is not read.

    Args:
        config: with `data.folds`; None means `DEFAULT_FOLDS`.
        show: called with lines about what is done.

    Returns:
        The result; None if the training was interrupted, and the same call goes on with it.

    Raises:
        ConfigError: a setting makes no sense with folds, or needs a package that is not installed.
        DataError: a fold would be without an image of a class.
        HarnessError: the training of a fold failed; the same call goes on with that fold.
    """
    config = _checked(config)
    assert config.data.folds is not None
    config.finetune.check_installed()
    splits = [load_splits(_of_fold(config, fold).data) for fold in range(config.data.folds)]
    store = open_store(config.tracking)
    experiment = config.tracking.experiment or splits[0].name
    name = config.tracking.run_name or f"cv{config.data.folds}-{config.model.kind}-{config.finetune.kind}"
    tags = {names.KIND: "cross-validation", names.FOLDS: _identity(config, splits)}
    parent_id = store.find_run(experiment, tags)
    if parent_id is not None and get_run(config.tracking, parent_id).status == "FINISHED":
        show(f"run {parent_id} has done this: nothing is trained again")
        return _result(config, parent_id, splits)
    parent = store.start_run(name, experiment, tags, run_id=parent_id)
    try:
        with sole_process(_folder(config, parent.run_id)):
            if not _train_folds(config, store, experiment, parent.run_id, show):
                parent.finish("KILLED")
                show("interrupted; repeat the command to go on")
                return None
            found = _result(config, parent.run_id, splits)
            _record(parent, config, found)
    except BaseException as error:
        parent.finish("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        raise
    parent.finish("FINISHED")
    return found


def _checked(config: RunConfig) -> RunConfig:
    """Return the configuration with its number of folds."""
    refused = {
        "data.fold": (config.data.fold != 0, "every fold is trained"),
        "data.train_on_val": (config.data.train_on_val, "each fold is validated"),
        "evaluate_test": (config.evaluate_test, "cross-validation does not read the test split"),
        "trainer.devices": (config.trainer.devices > 1, "each fold trains on one device"),
    }
    for key, (is_set, why) in refused.items():
        if is_set:
            raise ConfigError(f"{key} cannot be set for cross-validation: {why}; leave it out")
    if config.is_multilabel:
        raise ConfigError(
            "data=multilabel cannot be cross-validated: folds are stratified by one class an image"
        )
    folds = config.data.folds or DEFAULT_FOLDS
    return config.model_copy(update={"data": config.data.model_copy(update={"folds": folds})})


def _of_fold(config: RunConfig, fold: int) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"fold": fold})})


def _identity(config: RunConfig, splits: list[ImageSplits]) -> str:
    """Return a hash of all that the result depends on: the configuration and every fold's images."""
    settings = config.model_dump(mode="json", exclude=NOT_PART_OF_IDENTITY)  # type: ignore[arg-type]
    content = {"config": settings, "images": [one.digest for one in splits]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _folder(config: RunConfig, run_id: str) -> Path:
    return Path(config.tracking.dir) / "checkpoints" / run_id


def _children(config: RunConfig, parent_id: str) -> dict[int, RunRecord]:
    """Return the runs of the folds that have begun, by fold."""
    found = search_runs(config.tracking, f"tags.`{names.PARENT}` = '{parent_id}'")
    return {int(run.tags[names.FOLD]): run for run in found if names.FOLD in run.tags}


def _train_folds(
    config: RunConfig, store: RunStore, experiment: str, parent_id: str, show: Callable[[str], None]
) -> bool:
    """Train the folds that are not finished; return False if a signal interrupted that."""
    assert config.data.folds is not None
    begun = _children(config, parent_id)
    prepare_process(config.trainer.threads, config.trainer.keep_memory)
    with StopSignals(answer_signal) as signals:
        for fold in range(config.data.folds):
            known = begun.get(fold)
            if known is not None and known.status == "FINISHED":
                show(f"fold {fold} of {config.data.folds} is done (run {known.run_id})")
                continue
            show(f"fold {fold} of {config.data.folds}{', going on' if known else ''}:")
            tracker = store.start_run(
                f"fold-{fold}",
                experiment,
                {names.KIND: "fold", names.FOLD: str(fold)},
                parent_run_id=parent_id,
                run_id=None if known is None else known.run_id,
            )
            folder = _folder(config, tracker.run_id)
            with sole_process(folder):
                result = train(
                    _of_fold(config, fold),
                    tracker=tracker,
                    checkpoint_dir=folder,
                    on_epoch=partial(print_epoch, monitor=config.trainer.monitor.metric),
                    stop_requested=lambda: signals.count > 0,
                )
            if result.status == "interrupted":
                return False
    return True


# ── the result ────────────────────────────────────────────────────────────────────────────────────


def _result(config: RunConfig, parent_id: str, splits: list[ImageSplits]) -> CrossValidation:
    """Return what the records of the folds amount to.

    Raises:
        TrackingError: a fold's record is missing or of other images.
    """
    children = _children(config, parent_id)
    metric = config.trainer.monitor.metric
    folds, answers = [], []
    for number, of_fold in enumerate(splits):
        run = children.get(number)
        if run is None or run.status != "FINISHED":
            raise TrackingError(
                f"fold {number} of run {parent_id} is not recorded (was its run deleted?): set another seed, "
                "or delete the run in MLflow, to begin anew"
            )
        predictions = load_predictions(config.tracking, run)
        if predictions.digest != of_fold.val.digest:
            raise TrackingError(f"fold {number} (run {run.run_id}) was validated on other images")
        answers.append(predictions)
        folds.append(
            Fold(
                fold=number,
                run_id=run.run_id,
                score=run.results[metric],
                best_epoch=int(run.metrics[names.BEST_EPOCH]),
                num_train=len(of_fold.train),
                num_val=len(of_fold.val),
                metrics={key: value for key, value in run.results.items() if key.startswith("val/")},
            )
        )
    shared = set.intersection(*(set(one.metrics) for one in folds))
    estimates = {
        key: estimate_folds(
            [one.metrics[key] for one in folds], is_share=is_within_one(key, minimizes=key == "val/loss")
        )
        for key in sorted(shared)
    }
    parent = get_run(config.tracking, parent_id)
    evaluation = evaluate(out_of_fold(answers, splits[0]))
    return CrossValidation(parent_id, parent.name, metric, tuple(folds), estimates, evaluation)


def out_of_fold(answers: list[Predictions], splits: ImageSplits) -> Predictions:
    """Return the predictions of all folds' images as one, in the order of the images in the source.

    Args:
        splits: of any of the folds.

    Raises:
        TrackingError: an image is answered twice, or not at all.
    """
    assert splits.whole is not None
    every = splits.whole.train
    index = np.concatenate([one.index for one in answers])
    order = np.argsort(index, kind="stable")
    if not np.array_equal(index[order], every.indices):
        raise TrackingError("the folds do not answer each image once: their records are of other data")
    return predictions_of(
        np.concatenate([one.logits for one in answers])[order],
        np.concatenate([one.labels for one in answers])[order],
        split=OUT_OF_FOLD,
        class_names=answers[0].class_names,
        digest=every.digest,
        index_N=index[order],
    )


def _record(tracker: Tracker, config: RunConfig, found: CrossValidation) -> None:
    """Record the result in the parent run."""
    tracker.log_params(config.to_dict())
    summary: dict[str, float] = {}
    for key, of in found.estimates.items():
        values: dict[str, Any] = {"mean": of.mean, "deviation": of.deviation, "low": of.low, "high": of.high}
        summary |= {f"{what}/{key}": value for what, value in values.items() if value is not None}
    tracker.log_summary(summary, replaces=True)
    rows = [
        {
            "fold": one.fold,
            "run_id": one.run_id,
            "num_train": one.num_train,
            "num_val": one.num_val,
            "best_epoch": one.best_epoch + 1,
            **{key: one.metrics[key] for key in found.estimates},
        }
        for one in found.folds
    ]
    tracker.log_text(as_csv(rows), "folds.csv")
    record_evaluation(tracker, found.evaluation)
    if config.evaluation.pictures != "none":
        look_closely(tracker, found.evaluation)
    table = markdown_table(
        ("fold", found.metric, "best epoch", "images", "run"),
        [
            (str(one.fold), f"{one.score:.4f}", str(one.best_epoch + 1), f"{one.num_val:,}", one.run_id)
            for one in found.folds
        ],
    )
    tracker.set_tags({names.NOTE: f"{found.sentence}\n\n{EXPLAINED}\n\n{table}"})
