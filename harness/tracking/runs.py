"""Reading recorded runs back."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.artifacts import load_text
from mlflow.entities import Run

from harness.config.schema import TrackingConfig
from harness.errors import TrackingError, did_you_mean
from harness.tracking import names
from harness.tracking.operations import STORE_ERRORS, first_line
from harness.tracking.store import open_store, store_exists, store_uri

PAGE_SIZE = 1000
MIN_PREFIX = 4  # characters of a run's id that may stand for it


@dataclass(frozen=True)
class RunRecord:
    """What is recorded of one run."""

    run_id: str
    name: str
    experiment_id: str
    kind: str  # train | trial | sweep
    status: str  # RUNNING | FINISHED | FAILED | KILLED
    parent_run_id: str | None
    sweep: str | None
    trial: int | None
    params: dict[str, str]
    metrics: dict[str, float]  # the last value of each
    tags: dict[str, str]
    start_s: float  # seconds since 1970
    end_s: float | None
    artifact_uri: str

    @property
    def checkpoint(self) -> str | None:
        """The path of the best checkpoint, where one was kept."""
        return None if self.checkpoint_was_removed else self.tags.get(names.CHECKPOINT)

    @property
    def checkpoint_was_removed(self) -> bool:
        """Whether it had to make room for those of better trials."""
        return self.tags.get(names.CHECKPOINT) == names.CHECKPOINT_REMOVED

    @property
    def minutes(self) -> float | None:
        """How long it took, or None while it runs."""
        return None if self.end_s is None else (self.end_s - self.start_s) / 60


def find_runs(
    tracking: TrackingConfig,
    *,
    run_ids: Sequence[str] | None = None,
    sweep: str | None = None,
    filter_string: str | None = None,
) -> list[RunRecord]:
    """Return the runs that fit everything given, oldest first.

    Args:
        run_ids: ids, unique prefixes of ids, or names.
        sweep: a sweep's name: its trials and its parent.
        filter_string: in MLflow's syntax, such as ``metrics.`val/accuracy` > 0.8``.

    Raises:
        TrackingError: there is no store, no such run or sweep, or the filter cannot be read.
    """
    records = _search(tracking, filter_string or "")
    if sweep is not None:
        _check_sweep(sweep, _search(tracking, "") if filter_string else records)
        records = [record for record in records if record.sweep == sweep]
    if run_ids is not None:
        chosen = {_resolve(records, wanted).run_id for wanted in run_ids}
        records = [record for record in records if record.run_id in chosen]
    return records


def get_run(tracking: TrackingConfig, reference: str) -> RunRecord:
    """Return the run with this id, unique prefix of an id, or unique name.

    Raises:
        TrackingError: there is none, or more than one.
    """
    return _resolve(_search(tracking, ""), reference)


def read_config(run: RunRecord) -> dict[str, Any]:
    """Return the configuration that a run recorded when it began.

    Raises:
        TrackingError: it recorded none, or the store cannot be read.
    """
    try:
        return dict(yaml.safe_load(load_text(f"{run.artifact_uri}/{names.CONFIG_FILE}")))
    except STORE_ERRORS as error:
        raise TrackingError(
            f"the configuration of run {run.run_id} ({run.name}) cannot be read, start a new run: "
            f"{first_line(error)}"
        ) from error


def newest_sweep(tracking: TrackingConfig) -> RunRecord | None:
    """Return the parent run of the sweep that was started last, or None if there was none."""
    parents = _search(tracking, f"tags.`{names.KIND}` = 'sweep'")
    return parents[-1] if parents else None


def best_trial_of(
    tracking: TrackingConfig, sweep: str, *, metric: str = names.VAL_ACCURACY, higher_is_better: bool = True
) -> RunRecord:
    """Return the trial that the sweep calls best; before it ended, the finished one with the best `metric`.

    Of equals, the one with the lowest number.

    Raises:
        TrackingError: the sweep does not exist, or no trial of it has finished.
    """
    runs = find_runs(tracking, sweep=sweep)
    declared = {run.tags.get(names.BEST_RUN) for run in runs if run.kind == "sweep"}
    for run in runs:
        if run.run_id in declared:
            return run
    finished = [r for r in runs if r.kind == "trial" and r.status == "FINISHED" and metric in r.metrics]
    if not finished:
        raise TrackingError(
            f"no trial of sweep {sweep!r} has finished with {metric}: let it run, or see its log"
        )
    sign = -1 if higher_is_better else 1
    return min(finished, key=lambda r: (sign * r.metrics[metric], r.trial if r.trial is not None else 0))


def find_checkpoint(tracking: TrackingConfig, reference: str | None = None) -> tuple[RunRecord, Path]:
    """Return a run and its checkpoint: as asked for, else of the newest sweep's best trial, else the newest.

    Raises:
        TrackingError: there is no such run, or it kept no checkpoint.
    """
    run = get_run(tracking, reference) if reference else _default_run(tracking)
    if run.kind == "sweep" and run.sweep:
        run = best_trial_of(tracking, run.sweep)
    if run.checkpoint_was_removed:
        raise TrackingError(
            f"run {run.run_id} ({run.name}): {names.CHECKPOINT_REMOVED}; choose a better trial of its sweep"
        )
    if run.checkpoint is None:
        raise TrackingError(
            f"run {run.run_id} ({run.name}, {run.status}) kept no checkpoint: choose another run"
        )
    path = Path(run.checkpoint)
    if not path.is_file():
        raise TrackingError(f"the checkpoint of run {run.run_id} is gone: {path} was moved or deleted")
    return run, path


def _default_run(tracking: TrackingConfig) -> RunRecord:
    newest = newest_sweep(tracking)
    if newest is not None:
        return newest
    with_checkpoint = [run for run in _search(tracking, "") if run.checkpoint]
    if not with_checkpoint:
        raise TrackingError(
            f"no run in {tracking.dir} has kept a checkpoint: run `harness train` or `harness sweep`"
        )
    return with_checkpoint[-1]


def _check_sweep(sweep: str, records: Sequence[RunRecord]) -> None:
    known = {record.sweep for record in records if record.sweep}
    if sweep not in known:
        raise TrackingError(f"no sweep {sweep!r} is recorded{did_you_mean(sweep, known)}")


def _search(tracking: TrackingConfig, filter_string: str) -> list[RunRecord]:
    if not store_exists(tracking):
        raise TrackingError(
            f"nothing is recorded in {tracking.dir} yet: run `harness train` or `harness sweep` first"
        )
    client = open_store(tracking).client
    try:
        runs = _all_runs(client, filter_string)
    except STORE_ERRORS as error:
        cause = f"filter {filter_string!r}" if filter_string else store_uri(tracking)
        raise TrackingError(f"{cause} cannot be read: {first_line(error)}") from error
    return sorted(map(_record, runs), key=lambda record: (record.start_s, record.trial or 0, record.run_id))


def _all_runs(client: MlflowClient, filter_string: str) -> list[Run]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(experiments, filter_string, max_results=PAGE_SIZE, page_token=token)
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def _record(run: Run) -> RunRecord:
    tags = run.data.tags
    trial = tags.get(names.TRIAL, "")
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id[:8],
        experiment_id=run.info.experiment_id,
        kind=tags.get(names.KIND, "train"),
        status=run.info.status,
        parent_run_id=tags.get(names.PARENT),
        sweep=tags.get(names.SWEEP),
        trial=int(trial) if trial.isdecimal() else None,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(tags),
        start_s=run.info.start_time / 1000,
        end_s=run.info.end_time / 1000 if run.info.end_time else None,
        artifact_uri=run.info.artifact_uri,
    )


def _resolve(records: Sequence[RunRecord], reference: str) -> RunRecord:
    exact = [r for r in records if r.run_id == reference]
    named = [r for r in records if r.name == reference]
    prefixed = [r for r in records if len(reference) >= MIN_PREFIX and r.run_id.startswith(reference)]
    found = exact or named or prefixed
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(record.run_id[:12] for record in found[-3:])
        raise TrackingError(f"{len(found)} runs are called {reference!r}: give an id, such as {ids}")
    known = {r.run_id for r in records} | {r.name for r in records}
    near = difflib.get_close_matches(reference, known, n=3)
    hint = ", ".join(near) if near else ", ".join(f"{r.name} ({r.run_id[:12]})" for r in records[-3:])
    raise TrackingError(f"no run {reference!r} is recorded; {'near' if near else 'newest'}: {hint or 'none'}")
