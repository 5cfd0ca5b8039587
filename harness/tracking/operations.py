"""The few things that are ever done to a run in MLflow, each from plain JSON so that it can wait on disk."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from sqlalchemy.exc import SQLAlchemyError

from harness.tracking.logged_model import delete_models, log_checkpoint
from harness.tracking.spool import Operation

logger = logging.getLogger(__name__)

# The store is away, full, locked or misbehaving. (requests' exceptions are OSErrors.)
STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError)

# MLflow's limits for one request.
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100
MAX_TAG_LENGTH = 8000  # characters
MAX_DIGEST_LENGTH = 36  # characters; the whole digest is in the data set's profile

# Answers that will be the same tomorrow: trying again would block everything behind it.
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}

Item = TypeVar("Item")
Point = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step


def apply(client: MlflowClient, run_id: str, operation: Operation) -> None:
    """Do it; what MLflow refuses for good is dropped with a warning.

    Raises:
        STORE_ERRORS: it could not be done now, and may be possible later.
    """
    try:
        _dispatch(client, run_id, operation)
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        logger.warning("MLflow refused part of run %s for good: %s", run_id, first_line(error))


def _dispatch(client: MlflowClient, run_id: str, operation: Operation) -> None:
    match operation["op"]:
        case "params":
            _log_params(client, run_id, operation["params"])
        case "metrics":
            _log_metrics(client, run_id, operation["points"])
        case "tags":
            _set_tags(client, run_id, operation["tags"])
        case "artifact":
            _log_artifact(client, run_id, Path(operation["path"]), operation["name"])
        case "data":
            _log_data(client, run_id, operation)
        case "model":
            log_checkpoint(client, run_id, operation)
        case "forget_models":
            delete_models(client, run_id)
        case "status":
            client.set_terminated(run_id, operation["status"], end_time=operation["end_time"])
        case unknown:
            logger.warning("run %s has a spooled operation %r of another version: dropped", run_id, unknown)


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    recorded = client.get_run(run_id).data.params  # immutable, so a resumed run leaves them alone
    new = [Param(key, value) for key, value in params.items() if key not in recorded]
    for some in _batches(new, MAX_PARAMS):
        client.log_batch(run_id, params=some, synchronous=True)


def _log_metrics(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    metrics = [Metric(key, value, timestamp, step) for key, value, timestamp, step in points]
    for some in _batches(metrics, MAX_METRICS):
        client.log_batch(run_id, metrics=some, synchronous=True)


def _set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    all_tags = [RunTag(key, str(value)[:MAX_TAG_LENGTH]) for key, value in tags.items()]
    for some in _batches(all_tags, MAX_TAGS):
        client.log_batch(run_id, tags=some, synchronous=True)


def _log_artifact(client: MlflowClient, run_id: str, path: Path, name: str) -> None:
    """Upload `path`, whose file name is already that of the artifact, into the artifact's folder."""
    folder = str(PurePosixPath(name).parent)
    client.log_artifact(run_id, str(path), None if folder == "." else folder)


def _log_data(client: MlflowClient, run_id: str, record: Mapping[str, Any]) -> None:
    classes = list(record["class_names"])
    profile = {"num_rows": record["num_rows"], "num_classes": len(classes), "sha256": record["digest"]}
    dataset = Dataset(
        # MLflow keeps one input per name and digest: under one name, a run's second split would be lost.
        name=f"{record['name']}/{record['context']}",
        digest=record["digest"][:MAX_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": record["source"]}, ensure_ascii=False),
        schema=json.dumps({"classes": classes[:100]}, ensure_ascii=False),
        profile=json.dumps(profile),
    )
    tag = InputTag(MLFLOW_DATASET_CONTEXT, record["context"])
    client.log_inputs(run_id, [DatasetInput(dataset, [tag])])


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
