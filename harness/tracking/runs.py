"""`RunRecord`: reads recorded runs back from the run store, for compare, export, evaluate, resume and ui.

A store may hold thousands of runs, so each function reads only those that it needs. Read `choice.py` next: it
finds sweeps and their best trials.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.artifacts import load_text
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from harness.config.schema import TrackingConfig
from harness.errors import TrackingError, first_line
from harness.tracking import names
from harness.tracking.address import store_exists, store_uri
from harness.tracking.mlflow_tables import StoredRun, read_stored_runs
from harness.tracking.mlflow_writes import NO_SUCH_RUN, STORE_ERRORS
from harness.tracking.readings import Noted, ledger
from harness.tracking.store import open_store

PAGE_SIZE = 1000
NUM_NEAR = 1000  # newest runs among which one similar to a mistyped reference is looked for
RUN_ID = re.compile(r"[0-9a-f]{32}")
PREFIX = re.compile(r"[0-9a-f]{4,31}")  # of a run's id, which may stand for it


@dataclass(frozen=True)
class RunRecord:
    """One run as recorded."""

    run_id: str
    name: str
    experiment_id: str
    kind: str  # train | trial | sweep | final | ensemble | soup
    status: str  # RUNNING | FINISHED | FAILED | KILLED
    parent_run_id: str | None
    sweep: str | None
    trial: int | None
    params: dict[str, str]
    metrics: dict[str, float]  # the last value of each; NaN, by which one is withdrawn, is left out
    tags: dict[str, str]
    start_s: float  # seconds since 1970
    end_s: float | None
    artifact_uri: str
    val_digest: str | None = None  # of the validation images; None: recorded by an earlier version
    data_digest: str | None = None  # of all its images, the first digits

    @property
    def checkpoint(self) -> str | None:
        """The path of the best checkpoint, where one was kept."""
        return None if self.checkpoint_was_removed else self.tags.get(names.CHECKPOINT)

    @property
    def checkpoint_was_removed(self) -> bool:
        """Whether the checkpoint was removed to make room for those of better trials."""
        return self.tags.get(names.CHECKPOINT) == names.CHECKPOINT_REMOVED

    @property
    def minutes(self) -> float | None:
        """How long the run trained, all its attempts together; None while it runs."""
        if (seconds := self.metrics.get(names.TRAINED_SECONDS)) is not None:
            return seconds / 60
        return None if self.end_s is None else (self.end_s - self.start_s) / 60

    @property
    def outcome(self) -> str:
        """How the run ended; for a trial, as its sweep judged it.

        A run that is in progress or was killed has its status in lower case.
        """
        told = self.tags.get(names.OUTCOME)
        # A trial's process may have finished, set its outcome, and died before it told its sweep: then the
        # sweep closed the run as FAILED, and that counts.
        if self.status == "FAILED":
            return "infeasible" if told == "infeasible" else "failed"
        if self.status != "FINISHED":  # resumed: the outcome is that of an earlier attempt
            return self.status.lower()
        return told or ("pruned" if self.tags.get(names.PRUNED) == "true" else "finished")

    @property
    def results(self) -> dict[str, float]:
        """The metrics on each split (`val/…`, `test/…`); those of the kept epoch where they are recorded."""
        kept = {
            key.removeprefix(names.BEST): value
            for key, value in self.metrics.items()
            if key.startswith(names.BEST)
        }
        found = {**self.metrics, **kept}
        return {key: value for key, value in sorted(found.items()) if key.startswith(("val/", "test/"))}

    @property
    def called_s(self) -> float:
        """When the last call of a sweep began, in seconds since 1970."""
        return _seconds(self.tags, names.CALLED_AT) or self.start_s

    @property
    def active_s(self) -> float:
        """When a sweep was last active, in seconds since 1970."""
        return max(_seconds(self.tags, names.ACTIVE_AT), self.start_s, self.end_s or 0.0)


def find_runs(
    tracking: TrackingConfig,
    *,
    run_ids: Sequence[str] | None = None,
    filter_string: str | None = None,
) -> list[RunRecord]:
    """Return the runs that fit everything given, oldest first.

    Args:
        run_ids: ids, unique prefixes of ids, or names.
        filter_string: in MLflow's syntax, such as ``metrics.`val/accuracy` > 0.8``.

    Raises:
        TrackingError: there is no store, no such run, or the filter cannot be read.
    """
    if run_ids is None:
        return search_runs(tracking, filter_string or "")
    meant = {run.run_id: run for run in (get_run(tracking, reference) for reference in run_ids)}
    if filter_string is None:
        return sorted(meant.values(), key=_age)
    return [run for run in search_runs(tracking, filter_string) if run.run_id in meant]


def get_run(tracking: TrackingConfig, reference: str) -> RunRecord:
    """Return the run with this id, name, or unique prefix of an id.

    Of several sweeps of one name, it is the one that ran last.

    Raises:
        TrackingError: there is none, or more than one.
    """
    if RUN_ID.fullmatch(reference) and (run := _run_with_id(tracking, reference)) is not None:
        return run
    found = [run for run in search_runs(tracking, _is_named(reference)) if run.name == reference]
    if not found and PREFIX.fullmatch(reference):
        found = search_runs(tracking, f"attributes.run_id LIKE '{reference}%'")
    if not found:
        raise _no_such_run(tracking, reference)
    if len(found) > 1 and any(run.kind != "sweep" for run in found):
        ids = ", ".join(record.run_id[:12] for record in found[-3:])
        raise TrackingError(f"{len(found)} runs are called {reference!r}: give an id, such as {ids}")
    return max(found, key=activity)


def read_ledger(tracking: TrackingConfig, reference: str | None = None) -> list[Noted]:
    """Return every reading of the test split that is recorded, in order.

    Args:
        reference: a sweep or a run, whose readings alone are returned; of a trial, those of its sweep.

    Raises:
        TrackingError: there is no such run, or the store cannot be read.
    """
    if reference is None:
        return ledger(search_runs(tracking, ""))
    run = get_run(tracking, reference)
    return ledger([get_run(tracking, run.parent_run_id) if run.parent_run_id else run])


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


def search_runs(tracking: TrackingConfig, filter_string: str, limit: int | None = None) -> list[RunRecord]:
    """Return the runs that fit a filter of MLflow's, oldest first; of more than the limit, the newest.

    Raises:
        TrackingError: there is no store, it cannot be read, or the filter cannot.
    """
    client = _client(tracking)
    try:
        runs = _all_runs(client, filter_string, limit)
    except STORE_ERRORS as error:
        cause = f"filter {filter_string!r}" if filter_string else store_uri(tracking)
        raise TrackingError(f"{cause} cannot be read: {first_line(error)}") from error
    return sorted(map(_record, runs), key=_age)


def _run_with_id(tracking: TrackingConfig, run_id: str) -> RunRecord | None:
    """Return a run, or None if the store does not know it.

    Raises:
        TrackingError: the run was deleted, or the store cannot be read.
    """
    client = _client(tracking)
    try:
        run = client.get_run(run_id)
    except STORE_ERRORS as error:
        if isinstance(error, MlflowException) and error.error_code == NO_SUCH_RUN:
            return None
        raise TrackingError(f"{store_uri(tracking)} cannot be read: {first_line(error)}") from error
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(
            f"run {run_id} ({run.info.run_name}) was deleted in MLflow: restore it there first"
        )
    return _record(_stored(run))


def _is_named(name: str) -> str:
    """Return an MLflow filter for the runs with this name; if the name has quotes, it matches others too.

    MLflow's filters cannot escape a quote, so each becomes the wildcard `_`; the caller compares the names.
    """
    plain = re.sub(r"['\\]", "_", name)
    return f"attributes.run_name {'=' if plain == name else 'LIKE'} '{plain}'"


def _no_such_run(tracking: TrackingConfig, reference: str) -> TrackingError:
    recent = search_runs(tracking, "", limit=NUM_NEAR)
    near = difflib.get_close_matches(reference, {r.run_id for r in recent} | {r.name for r in recent}, n=3)
    hint = ", ".join(near) if near else ", ".join(f"{r.name} ({r.run_id[:12]})" for r in recent[-3:])
    which = "near" if near else "newest"
    return TrackingError(f"no run {reference!r} is recorded in {tracking.dir}; {which}: {hint or 'none'}")


def _client(tracking: TrackingConfig) -> MlflowClient:
    if not store_exists(tracking):
        raise TrackingError(
            f"nothing is recorded in {tracking.dir} yet: run `harness train` or `harness sweep` first"
        )
    return open_store(tracking, to_read=True).client


def _all_runs(client: MlflowClient, filter_string: str, limit: int | None) -> list[StoredRun]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    if limit is None and (found := read_stored_runs(client, experiments, filter_string)) is not None:
        return found
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(experiments, filter_string, max_results=PAGE_SIZE, page_token=token)
        runs.extend(page)
        token = page.token
        if not token or (limit is not None and len(runs) >= limit):
            return list(map(_stored, runs))


def _changed_params(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that were changed when a run was resumed.

    MLflow's parameters cannot be changed, so the new values are tags.
    """
    is_one = names.CHANGED
    return {key.removeprefix(is_one): value for key, value in tags.items() if key.startswith(is_one)}


def _stored(run: Run) -> StoredRun:
    return StoredRun(
        run_id=run.info.run_id,
        name=run.info.run_name,
        experiment_id=run.info.experiment_id,
        status=run.info.status,
        start_ms=run.info.start_time,
        end_ms=run.info.end_time,
        artifact_uri=run.info.artifact_uri,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
        digests={
            tag.value: used.dataset.digest
            for used in (run.inputs.dataset_inputs if run.inputs else [])
            for tag in used.tags
            if tag.key == MLFLOW_DATASET_CONTEXT
        },
    )


def _record(run: StoredRun) -> RunRecord:
    tags = run.tags
    trial = tags.get(names.TRIAL, "")
    validated_on = run.digests.get("validation")
    return RunRecord(
        run_id=run.run_id,
        name=run.name or run.run_id[:8],
        experiment_id=run.experiment_id,
        kind=tags.get(names.KIND, "train"),
        status=run.status,
        parent_run_id=tags.get(names.PARENT),
        sweep=tags.get(names.SWEEP),
        trial=int(trial) if trial.isdecimal() else None,
        params={**run.params, **_changed_params(tags)},
        metrics={key: value for key, value in run.metrics.items() if not math.isnan(value)},
        tags=tags,
        start_s=run.start_ms / 1000,
        end_s=run.end_ms / 1000 if run.end_ms else None,
        artifact_uri=run.artifact_uri,
        # Earlier versions recorded one digest of all images as that of both data sets.
        val_digest=None if validated_on == run.digests.get("training") else validated_on,
        data_digest=run.digests.get("training"),
    )


def _age(run: RunRecord) -> tuple[float, int, str]:
    return (run.start_s, run.trial or 0, run.run_id)


def activity(run: RunRecord) -> tuple[float, float]:
    """Return the sort key by which the sweep that ran last comes last."""
    return (run.active_s, run.start_s)


def _seconds(tags: Mapping[str, str], name: str) -> float:
    try:
        return float(tags.get(name, 0.0))
    except ValueError:
        return 0.0
