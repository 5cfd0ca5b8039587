"""From the run store to a bundle: which checkpoint, on which images it is proven, what is known of it.

The heavy imports are inside, so that `harness.export` stays cheap for those who only predict.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.schema import TrackingConfig
from harness.errors import ExportError
from harness.export.manifest import RunFacts

if TYPE_CHECKING:
    from harness.data.splits import ImageArrays
    from harness.export.bundle import ExportResult
    from harness.tracking.runs import RunRecord
    from harness.training.checkpoint import Checkpoint

SPLIT_PREFIXES = ("val/", "test/")


def export_run(
    tracking: TrackingConfig, run: str | None, output_root: Path = Path("exports")
) -> ExportResult:
    """Export a run's best checkpoint to `output_root/<name>`: the sweep's name, or the run's name and id.

    Args:
        run: id, prefix of an id, or name; None for the best trial of the newest sweep.

    Raises:
        TrackingError: there is no such run, or it kept no checkpoint.
        DataError: the images it was validated on are not there any more.
        ExportError: they are other images now, or the bundle fails its proof.
    """
    from harness.export.bundle import export_checkpoint, slug
    from harness.tracking.runs import find_checkpoint
    from harness.training.checkpoint import load_checkpoint

    record, path = find_checkpoint(tracking, run)
    facts = _facts(tracking, record)
    val = _validation_images(load_checkpoint(path), record)
    is_sweeps_best = record.sweep is not None and facts.is_best_of_sweep
    name = slug(record.sweep if is_sweeps_best and record.sweep else f"{record.name}-{record.run_id[:8]}")
    return export_checkpoint(path, output_root, name=name, val_images=val, facts=facts)


def _facts(tracking: TrackingConfig, record: RunRecord) -> RunFacts:
    """Collect what is recorded of the run; its sweep's parent keeps the test result of the best trial."""
    from harness.tracking import names
    from harness.tracking.runs import find_runs

    siblings = find_runs(tracking, sweep=record.sweep) if record.sweep else []
    parents = [other for other in siblings if other.kind == "sweep"]
    is_best = any(parent.tags.get(names.BEST_RUN) == record.run_id for parent in parents)
    metrics = _of_splits(record.metrics, SPLIT_PREFIXES)
    for parent in parents if is_best else ():
        metrics |= _of_splits(parent.metrics, ("test/",))
    return RunFacts(
        run_id=record.run_id,
        sweep=record.sweep,
        trial=record.trial,
        num_trials=sum(other.kind == "trial" and other.status == "FINISHED" for other in siblings) or None,
        is_best_of_sweep=is_best,
        metrics=metrics,
    )


def _of_splits(metrics: dict[str, float], prefixes: tuple[str, ...]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key.startswith(prefixes) and math.isfinite(value)}


def _validation_images(checkpoint: Checkpoint, record: RunRecord) -> ImageArrays:
    from harness.data import load_splits

    splits = load_splits(checkpoint.config.data)
    then = f"{checkpoint.data_name} (digest {checkpoint.data_digest[:12]})"
    if splits.digest != checkpoint.data_digest:
        raise ExportError(
            f"run {record.run_id} was trained on {then}, but its configuration now finds {splits.name} "
            f"({splits.digest[:12]}) in {checkpoint.config.data.dir}: put the images back there"
        )
    return splits.val
