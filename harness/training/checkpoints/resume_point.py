"""Finds the checkpoint from which an interrupted run goes on; `fit.py` calls `find_resume_point`.

`last.ckpt` is taken if it is undamaged and the checkpoint of the best epoch so far is there, too. Otherwise
the previous `last.ckpt` is taken, and without that the run starts from the beginning. In each case the
repeated epochs give the same weights, bit for bit. Damaged files are renamed to `<name>.damaged`.
`checkpoint_io.py` writes the files; `resume_run.py` is the command `harness train --resume`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from harness.config.monitor import BY_ACCURACY, MonitorConfig
from harness.config.optim import SCHEDULES_OF_ANY_LENGTH
from harness.config.schema import RunConfig
from harness.config.validation import validate
from harness.errors import CheckpointError, DamagedCheckpointError
from harness.training.callbacks import BEST, LAST, best_epoch, history_in
from harness.training.checkpoints.checkpoint import SECTION, ModelFacts, load_raw
from harness.training.checkpoints.checkpoint_io import previous_of

log = logging.getLogger(__name__)


def find_resume_point(
    folder: Path,
    facts: ModelFacts,
    select: Literal["best", "last"],
    monitor: MonitorConfig = BY_ACCURACY,
) -> Path | None:
    """Return the checkpoint to go on from, or None to start from the beginning.

    The files are moved so that the returned one is `last.ckpt` and `best.ckpt` is of its best epoch.

    Args:
        facts: the facts of the run to be resumed, with which the checkpoint's must agree.
        select: the epoch that is kept as the result, the best or the last.
        monitor: decides which epoch is the best.

    Raises:
        CheckpointError: the folder holds checkpoints of another configuration or of other data.
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
    """Refuse a checkpoint whose run differs in a setting that the finished epochs depend on.

    These are data, model, finetuning, augmentation, loss, teacher, optimiser, evaluation, seed, sizes of
    batch and epoch, and monitor, and the number of epochs if the learning-rate schedule depends on it.

    Args:
        before: the checkpoint's section `SECTION`.

    Raises:
        CheckpointError: one of them differs, or the checkpoint has more epochs than `facts` allow.
    """
    now = facts.to_dict()
    for part in ("data_digest", "class_names"):
        if before[part] != now[part]:
            raise CheckpointError(f"{path} was trained on other data: name another folder or delete it")
    # Validated, so that a setting that is newer than the checkpoint has its default, which is what was done.
    was, wanted = validate(RunConfig, before["config"]).to_dict(), now["config"]
    for part in ("model", "finetune", "augment", "loss", "distill", "optim", "average", "evaluation", "seed"):
        if _shaping(was[part]) != _shaping(wanted[part]):
            raise CheckpointError(
                f"{path} was trained with another {part!r} section: repeat the run as it was, or delete it"
            )
    if before.get("teacher") != now["teacher"]:
        raise CheckpointError(
            f"{path} learnt from a teacher with weights {str(before.get('teacher'))[:12]}, and "
            f"distill.teacher={wanted['distill'].get('teacher')} has {str(now['teacher'])[:12]} now: put the "
            "first teacher back, or begin a new run"
        )
    if before.get("origin") != now["origin"]:
        raise CheckpointError(
            f"{path} began with other weights ({str(before.get('origin'))[:12]}) than init_from="
            f"{wanted['init_from']} has now ({str(now['origin'])[:12]}): put the first ones back, or begin a "
            "new run"
        )
    for key in ("batch_size", "samples_per_epoch", "sampling"):
        if (value := was["data"][key]) != wanted["data"][key]:
            raise CheckpointError(
                f"{path} was trained with data.{key}={'null' if value is None else value}: "
                "with another its epochs have other steps"
            )
    if was["trainer"]["monitor"] != wanted["trainer"]["monitor"]:
        raise CheckpointError(
            f"{path} is of a run with another trainer.monitor (in a sweep: sweep.metric), which has chosen "
            "its best epoch: repeat the run as it was, or delete it"
        )
    _check_length(path, before["epoch"] + 1, was["trainer"]["max_epochs"], wanted)


def _shaping(section: Any) -> Any:
    """Return a section without what no score depends on: the pictures that are drawn."""
    if not isinstance(section, Mapping):
        return section
    return {key: value for key, value in section.items() if key != "pictures"}


def _check_length(path: Path, num_done: int, was: int, wanted: dict[str, Any]) -> None:
    """Refuse another number of epochs if the learning rates of the finished epochs depend on that number."""
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


def _put_best_back(
    folder: Path, raw: dict[str, Any], select: Literal["best", "last"], monitor: MonitorConfig
) -> None:
    """Make `best.ckpt` the checkpoint of the best epoch in the history of `raw`.

    If the run was killed after it wrote `best.ckpt` and before it wrote `last.ckpt`, `best.ckpt` is of an
    epoch that this history does not contain. In that case the previous `best.ckpt` is put back.

    Raises:
        DamagedCheckpointError: neither file is of that epoch, or both are damaged.
    """
    history = history_in(raw)
    epoch = best_epoch(history, monitor, select)
    best = folder / BEST
    problem = f"{best} of epoch {epoch + 1} is gone"
    for path in (best, previous_of(best)):
        try:
            if path.is_file() and _is_of_epoch(path, epoch, history[epoch].get(monitor.metric)):
                path.replace(best)
                return
        except DamagedCheckpointError as error:
            problem = str(error)
    raise DamagedCheckpointError(problem)


def _is_of_epoch(path: Path, epoch: int, score: float | None) -> bool:
    """Tell whether a checkpoint is of this epoch and score; None: the run has no validation images."""
    section = _load_whole(path)[SECTION]
    return bool(section["epoch"] == epoch and (score is None or section["score"] == score))


def _load_whole(path: Path) -> dict[str, Any]:
    """Load a checkpoint; rename it to `<name>.damaged` if it is damaged, and raise."""
    try:
        return load_raw(path)
    except DamagedCheckpointError as error:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        why = f"{path} is damaged and was set aside as {aside.name}"
        raise DamagedCheckpointError(why) from error
