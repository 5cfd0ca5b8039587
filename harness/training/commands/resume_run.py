"""The command `harness train --resume RUN`: continues an interrupted run, or trains a finished one longer.

`harness.cli` and `harness.api` call `resume_training`. It refuses overrides that a resumed run cannot take,
and calls `command.py` with the run's recorded configuration; `resume_point.py` then picks the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.config.overrides import parse_overrides
from harness.config.schema import RunConfig, TrackingConfig
from harness.config.validation import validate
from harness.errors import ConfigError, TrackingError, did_you_mean
from harness.tracking import names
from harness.tracking.runs import RunRecord, get_run, read_config
from harness.tracking.store import open_store
from harness.training.checkpoints.resume_point import SCHEDULES_OF_ANY_LENGTH
from harness.training.command import run_training
from harness.training.result import RunResult

LONGER = ("trainer.max_epochs", "trainer.early_stopping_patience")
ELSEWHERE = (
    "trainer.device",
    "trainer.precision",
    "trainer.threads",
    "trainer.compile",
    "trainer.keep_memory",
)


def resume_training(
    tracking: TrackingConfig, reference: str, overrides: Sequence[str] = ()
) -> tuple[int, RunResult | None]:
    """Continue a run after its last complete epoch, with its recorded configuration.

    Args:
        reference: the run's id, a unique prefix of it, or its unique name.
        overrides: new values; only the settings in `LONGER` and `ELSEWHERE` may change.

    Returns:
        The command's exit code and the result, as from `run_training`.

    Raises:
        TrackingError: there is no such run, nothing is left to train, or the run belongs to a sweep.
        ConfigError: an override changes a setting that the finished epochs depend on.
    """
    run = get_run(tracking, reference)
    if run.kind == "final":
        raise TrackingError(
            f"run {run.run_id} is the final training of sweep {run.sweep!r}: repeat `harness finalize`"
        )
    if names.RERUN_OF in run.tags:
        repeated = run.tags[names.RERUN_OF]
        raise TrackingError(
            f"run {run.run_id} repeats run {repeated}: `harness rerun {repeated}` begins anew"
        )
    if run.kind in ("fold", "cross-validation"):
        raise TrackingError(f"run {run.run_id} is of cross-validation: repeat `harness cross-validate`")
    if run.kind in ("ensemble", "soup"):
        raise TrackingError(f"run {run.run_id} is of several models ({run.kind}): it was not trained")
    if run.kind != "train":
        raise TrackingError(
            f"run {run.run_id} belongs to sweep {run.sweep!r}: repeat `harness sweep`, and it goes on"
        )
    before = validate(RunConfig, read_config(run))
    config = _changed(before, overrides)
    _check_longer(run, before, config)
    changes = {
        f"{names.CHANGED}{path}": str(value)
        for path, value in _trainer(config).items()
        if value != _trainer(before)[path]
    }
    if changes:  # as tags: MLflow never changes a parameter that is logged
        open_store(tracking).note(run.run_id, changes)
    moved = config.tracking.model_copy(update={"dir": tracking.dir})
    return run_training(config.model_copy(update={"tracking": moved}), run.run_id)


def _changed(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the configuration with the overrides applied.

    Raises:
        ConfigError: an override names a setting that may not change, or has a wrong value.
    """
    values = config.to_dict()
    for override in parse_overrides(overrides):
        path = override.key_or_group
        if path not in LONGER + ELSEWHERE:
            raise ConfigError(
                f"--resume goes on with the run as it was configured: {path} cannot change"
                + did_you_mean(path, LONGER + ELSEWHERE)
            )
        values["trainer"][path.removeprefix("trainer.")] = override.value()
    return validate(RunConfig, values)


def _check_longer(run: RunRecord, before: RunConfig, config: RunConfig) -> None:
    """Check that there are epochs left to train, and that the schedule allows the number of epochs.

    Raises:
        TrackingError: no epochs are left, or the schedule does not allow another number.
    """
    name, kind = f"run {run.run_id} ({run.name})", config.optim.schedule.kind
    more, was = config.trainer.max_epochs, before.trainer.max_epochs
    if more != was and kind not in SCHEDULES_OF_ANY_LENGTH:
        raise TrackingError(
            f"{name} cannot train for {more} epochs: the rates of its {kind} schedule are laid out over "
            f"{was} and would jump. Train it anew with trainer.max_epochs={more}; a run with "
            f"optim.schedule.kind={' or '.join(SCHEDULES_OF_ANY_LENGTH)} can be prolonged"
        )
    if run.status != "FINISHED":
        return
    num_done = int(run.metrics.get(names.EPOCH, -1)) + 1
    patience = config.trainer.early_stopping_patience
    if num_done < was and patience == before.trainer.early_stopping_patience:
        raise TrackingError(
            f"{name} has stopped after {num_done} of {was} epochs, as it got no better "
            f"(trainer.early_stopping_patience={patience}): add trainer.early_stopping_patience=null"
        )
    if more <= num_done:
        raise TrackingError(
            f"{name} has finished its {num_done} epochs: there is nothing to go on with; to train it longer, "
            f"add trainer.max_epochs={2 * num_done}"
        )


def _trainer(config: RunConfig) -> dict[str, object]:
    return {f"trainer.{key}": value for key, value in config.to_dict()["trainer"].items()}
