"""Where an interrupted run goes on from.

A `last.ckpt` serves if it is whole and the checkpoint of the best epoch that it tells of is at hand too.
Otherwise the one before it does, and failing that the beginning: the epochs are repeated exactly, so the
run ends as if nothing had happened. Damaged files are set aside as `<name>.damaged`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from harness.config.monitor import BY_ACCURACY, MonitorConfig
from harness.errors import CheckpointError, DamagedCheckpointError
from harness.training.callbacks import BEST, LAST, best_epoch, history_in
from harness.training.checkpoint import SECTION, ModelFacts, load_raw
from harness.training.checkpoint_io import previous_of

SCHEDULES_OF_ANY_LENGTH = ("constant", "step")

log = logging.getLogger(__name__)


def find_resume_point(
    folder: Path,
    facts: ModelFacts,
    select: Literal["best", "last"],
    monitor: MonitorConfig = BY_ACCURACY,
) -> Path | None:
    """Return the checkpoint to go on from, with its best epoch's in its place; None: from the beginning.

    Raises:
        CheckpointError: the folder holds another question's checkpoints.
    """
    last = folder / LAST
    problems: dict[str, None] = {}  # an ordered set
    for path in (last, previous_of(last)):
        if not path.is_file():
            continue
        try:
            raw = _load_whole(path)
            check_resumable(path, raw[SECTION], facts)
            _put_best_back(folder, raw, select, monitor)
        except DamagedCheckpointError as error:
            problems[str(error)] = None
            continue
        path.replace(last)
        if problems:
            log.warning("%s: going on after epoch %d", "; ".join(problems), raw[SECTION]["epoch"] + 1)
        return last
    if problems:
        log.warning("%s: starting from the beginning", "; ".join(problems))
    return None


def check_resumable(path: Path, before: dict[str, Any], facts: ModelFacts) -> None:
    """Refuse to go on from a checkpoint of another model or other data, or with other steps or rates.

    Args:
        before: what the checkpoint says of its run.

    Raises:
        CheckpointError: it is another question's.
    """
    now = facts.to_dict()
    for part in ("data_digest", "class_names"):
        if before[part] != now[part]:
            raise CheckpointError(f"{path} was trained on other data: name another folder or delete it")
    was, wanted = before["config"], now["config"]
    for part in ("model", "finetune", "augment", "optim", "evaluation", "seed"):
        if was.get(part, wanted[part]) != wanted[part]:  # older checkpoints lack some
            raise CheckpointError(
                f"{path} was trained with another {part!r} section: repeat the run as it was, or delete it"
            )
    if (batch_size := was["data"]["batch_size"]) != wanted["data"]["batch_size"]:
        raise CheckpointError(
            f"{path} was trained with data.batch_size={batch_size}: with another its epochs have other steps"
        )
    if _monitor_of(was) != _monitor_of(wanted):
        raise CheckpointError(
            f"{path} is of a run with another trainer.monitor (in a sweep: sweep.metric), which has chosen "
            "its best epoch: repeat the run as it was, or delete it"
        )
    _check_length(path, before["epoch"] + 1, was["trainer"]["max_epochs"], wanted)


def _check_length(path: Path, num_done: int, was: int, wanted: dict[str, Any]) -> None:
    """Refuse another number of epochs where the learning rates until now would have been others."""
    max_epochs, kind = wanted["trainer"]["max_epochs"], wanted["optim"]["schedule"]["kind"]
    if max_epochs != was and kind not in SCHEDULES_OF_ANY_LENGTH:
        raise CheckpointError(
            f"{path} was trained for trainer.max_epochs={was}, over which its {kind} schedule is laid out: "
            f"with another number its rate would jump (schedules of any length: "
            f"{', '.join(SCHEDULES_OF_ANY_LENGTH)})"
        )
    if max_epochs < num_done:
        raise CheckpointError(
            f"{path} has {num_done} epochs behind it, more than trainer.max_epochs={max_epochs}"
        )


def _monitor_of(config: dict[str, Any]) -> dict[str, str]:
    """Return what decides about a run, also about those of a time when that was always the accuracy."""
    monitor = config.get("trainer", {}).get("monitor", {})
    return MonitorConfig.model_validate(monitor).model_dump()


def _put_best_back(
    folder: Path, raw: dict[str, Any], select: Literal["best", "last"], monitor: MonitorConfig
) -> None:
    """Have `best.ckpt` be the best of the epochs that a checkpoint tells of, not a later one's."""
    history = history_in(raw)
    epoch = best_epoch(history, monitor, select)
    best = folder / BEST
    problem = f"{best} of epoch {epoch + 1} is gone"
    for path in (best, previous_of(best)):
        try:
            if path.is_file() and _is_of_epoch(path, epoch, history[epoch][monitor.metric]):
                path.replace(best)
                return
        except DamagedCheckpointError as error:
            problem = str(error)
    raise DamagedCheckpointError(problem)


def _is_of_epoch(path: Path, epoch: int, score: float) -> bool:
    section = _load_whole(path)[SECTION]
    return (section["epoch"], section["score"]) == (epoch, score)


def _load_whole(path: Path) -> dict[str, Any]:
    """Load a checkpoint, or set it aside."""
    try:
        return load_raw(path)
    except DamagedCheckpointError as error:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        why = f"{path} is damaged and was set aside as {aside.name}"
        raise DamagedCheckpointError(why) from error
