"""`export_run`: exports a run of the run store, with its validation images and its recorded metrics.

`harness export` and `harness.api` call it; `bundle.py` writes the bundle. Modules that need torch are
imported inside the functions, as `harness predict` imports this package and must not need torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.schema import TrackingConfig
from harness.errors import ExportError
from harness.export.manifest import RunFacts

if TYPE_CHECKING:
    from harness.data.splits import ImageSplits
    from harness.export.bundle import ExportResult
    from harness.tracking.choice import ChosenRun
    from harness.tracking.runs import RunRecord
    from harness.training.checkpoints.checkpoint import Checkpoint


def export_run(
    tracking: TrackingConfig,
    run: str | None,
    output_root: Path = Path("exports"),
    int8: float | None = None,
    show: Callable[[str], None] = lambda line: None,
) -> ExportResult:
    """Export a run's best checkpoint to `output_root/<name>`.

    `<name>` is the sweep's name if the run is the best trial of a sweep, otherwise the run's name and id.

    Args:
        run: id, prefix of an id, or name; None for the best trial of the sweep that ran last.
        int8: write a quantised model, too, unless it loses more than this share of validation accuracy.
        show: called before the work begins, with a line that says which run is taken and why.

    Raises:
        TrackingError: there is no such run, or it kept no checkpoint.
        DataError: its validation images are gone.
        ExportError: the images have changed since, or the exported model does not give the same answers.
    """
    from harness.export.bundle import Int8, bundle_name, export_checkpoint
    from harness.tracking.choice import choose
    from harness.training.checkpoints.checkpoint import load_checkpoint

    choice = choose(tracking, run)
    show(choice.why)
    record = choice.run
    checkpoint = load_checkpoint(choice.checkpoint)
    splits = _splits(checkpoint, record)
    thresholds = _thresholds(tracking, record, checkpoint, splits) if splits.is_multilabel else None
    if thresholds is not None and int8 is not None:
        raise ExportError(
            "--int8 measures what is lost of the accuracy, which multi-label models have none of"
        )
    val = splits.val if len(splits.val) else splits.train  # none are left by data.train_on_val
    is_sweeps_best = record.sweep is not None and choice.is_best_of_sweep
    of_run = f"{record.name}-{record.run_id[:8]}"
    name = bundle_name(record.sweep if is_sweeps_best and record.sweep else of_run)
    return export_checkpoint(
        choice.checkpoint,
        output_root,
        name=name,
        val_images=val,
        facts=_facts(choice),
        thresholds=thresholds,
        int8=None if int8 is None else Int8(splits.train, int8),
    )


def _facts(choice: ChosenRun) -> RunFacts:
    """Collect the run's metrics; the test metrics of a sweep's best trial stand in the sweep's parent run."""
    from harness.tracking import names
    from harness.tracking.readings import count_readings

    record, sweep = choice.run, choice.sweep
    metrics = dict(record.results)
    if sweep is not None and sweep.parent.tags.get(names.TESTED_RUN) == record.run_id:
        metrics |= {key: value for key, value in sweep.parent.results.items() if key.startswith("test/")}
    return RunFacts(
        run_id=record.run_id,
        sweep=record.sweep,
        trial=record.trial,
        num_trials=None if sweep is None else sweep.num_judged or None,
        is_best_of_sweep=choice.is_best_of_sweep,
        test_readings=count_readings((record if sweep is None else sweep.parent).tags),
        metrics={key: value for key, value in metrics.items() if math.isfinite(value)},
    )


def _thresholds(
    tracking: TrackingConfig, record: RunRecord, checkpoint: Checkpoint, splits: ImageSplits
) -> list[float]:
    """Return the threshold of each label, as the run has chosen it; 0.5 if it had no validation images.

    Those of a run with test-time augmentation are chosen anew without it, as the exported network has none.
    """
    from harness.tracking.artifacts import load_thresholds
    from harness.training.evaluate import plain_thresholds

    if not len(splits.val):
        return [0.5] * len(checkpoint.class_names)
    if checkpoint.config.evaluation.tta != "none":
        return plain_thresholds(checkpoint, splits)
    return load_thresholds(tracking, record, checkpoint.class_names)


def _splits(checkpoint: Checkpoint, record: RunRecord) -> ImageSplits:
    from harness.data import load_splits

    splits = load_splits(checkpoint.config.data)
    then = f"{checkpoint.data_name} (digest {checkpoint.data_digest[:12]})"
    if splits.digest != checkpoint.data_digest:
        raise ExportError(
            f"run {record.run_id} was trained on {then}, but its configuration now finds {splits.name} "
            f"({splits.digest[:12]}) in {checkpoint.config.data.dir}: put the images back there"
        )
    return splits
