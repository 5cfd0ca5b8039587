"""Trains what a plan lists, or finds it recorded; a training that was interrupted goes on.

`__main__.py` calls `ensure` for each training in turn, so a command that was killed anywhere is repeated to
go on: MLflow holds what is done. Read `harness/api.py` for the functions that train.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import harness
from experiments.published.plan import Training
from harness.config.compose import compose_run
from harness.config.schema import RunConfig, TrackingConfig
from harness.config.validation import validate
from harness.errors import ConfigError, HarnessError, TrackingError
from harness.tracking.address import store_exists
from harness.tracking.runs import RunRecord, find_runs, read_config

# What may differ between two runs of one training: places, speed, and what is recorded besides numbers.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "data": ("dir", "cache_dir", "download", "feature_cache_gb", "max_memory_share", "num_workers"),
    "trainer": ("device", "threads", "compile", "keep_memory", "devices"),
    "evaluation": ("pictures",),
    "tracking": ("dir", "experiment", "run_name", "log_model"),
}


class StoppedError(HarnessError):
    """A training was stopped by a signal; the same command goes on with it."""


def ensure(training: Training) -> RunRecord:
    """Return the finished run of a training, which is trained, or trained to its end, if need be.

    Raises:
        StoppedError: it was stopped.
        HarnessError: it cannot begin or cannot go on; another process may be training it.
    """
    run = recorded(training)
    if run is not None and run.status == "FINISHED":
        return run
    print(f"── {training.name}{'' if run is None else ' goes on'}", flush=True)
    result = harness.train(*training.overrides) if run is None else harness.resume(run.run_id)
    if result.status == "interrupted":
        raise StoppedError(f"{training.name} was interrupted: repeat the command to go on")
    run = recorded(training)
    assert run is not None, "a run that has ended well is in the store"
    return run


def recorded(training: Training) -> RunRecord | None:
    """Return the run of a training: a finished one, otherwise the newest; None if there is none."""
    tracking = TrackingConfig.at()
    if not store_exists(tracking):
        return None
    wanted = _wanted(tuple(training.overrides))
    named = find_runs(tracking, filter_string=f"attributes.run_name = '{training.name}'")
    same = [run for run in named if _essence_of(run) == wanted]
    finished = [run for run in same if run.status == "FINISHED"]
    return next(iter([*finished[::-1], *same[::-1]]), None)


@cache
def _wanted(overrides: tuple[str, ...]) -> dict[str, Any]:
    return _essence(compose_run(overrides))


def _essence_of(run: RunRecord) -> dict[str, Any] | None:
    try:
        return _essence(validate(RunConfig, read_config(run)))
    except (TrackingError, ConfigError):  # killed before it recorded its configuration; or of another version
        return None


def _essence(config: RunConfig) -> dict[str, Any]:
    """Return the settings that the result depends on."""
    values = config.to_dict()
    for section, keys in ELSEWHERE.items():
        for key in keys:
            values[section].pop(key, None)
    return values
