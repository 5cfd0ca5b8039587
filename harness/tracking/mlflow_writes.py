"""Every write to a run in MLflow: parameters, metrics, tags, artifacts, data sets, models, status.

A write is an `Operation`, a dict of plain JSON types, so that it can wait in the spool (`spool.py`) while
MLflow cannot be reached. `MlflowTracker` applies a new operation at once, if it can; `open_store` applies
those that earlier processes left in spools. Applying an operation twice has the same effect as applying it
once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_LOGGED_IMAGES
from PIL import Image
from sqlalchemy.exc import DataError, SQLAlchemyError

from harness.errors import causes, first_line
from harness.tracking.logged_model import delete_models, log_checkpoint
from harness.tracking.moved import found_path
from harness.tracking.spool import Operation, Spool

# What an unreachable, full, locked or faulty store raises. The exceptions of `requests` are OSErrors; a proxy
# that answers with a web page causes a JSONDecodeError.
STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, json.JSONDecodeError)

# MLflow's limits for one request.
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100
MAX_TAG_LENGTH = 8000  # characters
MAX_DIGEST_LENGTH = 36  # characters; the whole digest is in the data set's profile

# MLflow's error codes that will not change however often a write is repeated.
NO_SUCH_RUN = "RESOURCE_DOES_NOT_EXIST"
REFUSALS = {"INVALID_PARAMETER_VALUE", NO_SUCH_RUN, "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}

Item = TypeVar("Item")
Point = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step


class UnrecordableError(Exception):
    """An operation that can never be recorded: its file is gone, or this version does not know it."""


def apply(client: MlflowClient, spool: Spool, operation: Operation) -> list[Operation]:
    """Write an operation to MLflow; return the parts that the store refuses for good.

    If the store refuses several parameters, tags or points together, they are halved until those at fault
    stand alone, and all others are recorded.

    Args:
        spool: of the run that is written to; it holds the files of artifacts.

    Returns:
        The refused operations, each with the reason under the key `refused`.

    Raises:
        STORE_ERRORS: the store cannot take the operation now; it may later.
    """
    try:
        _dispatch(client, spool, operation)
    except Exception as error:
        if not is_refusal(error):
            raise
        # If the run does not exist, every part would be refused, so halving does not help.
        parts = [] if getattr(error, "error_code", "") == NO_SUCH_RUN else _halves(operation)
        if parts:
            return [refused for part in parts for refused in apply(client, spool, part)]
        return [operation | {"refused": first_line(error)}]
    return []


def is_refusal(error: BaseException) -> bool:
    """Return whether the store will never take what raised this error.

    Such an operation must not be tried again: it would hold back every later one.
    """
    # These two errors mean a text or a number that the database can never store. MLflow wraps them in an
    # error of its own, whose code says only "internal error", so the causes are examined.
    if any(isinstance(cause, UnicodeEncodeError | DataError) for cause in causes(error)):
        return True
    if isinstance(error, MlflowException):
        return error.error_code in REFUSALS
    return not isinstance(error, STORE_ERRORS)


def _halves(operation: Operation) -> list[Operation]:
    """Return an operation on several parameters, tags or points as two operations on half of them each."""
    field = {"params": "params", "tags": "tags", "metrics": "points"}.get(operation["op"], "")
    items = operation.get(field, ())
    if len(items) < 2:
        return []
    listed = list(items.items()) if isinstance(items, Mapping) else list(items)
    middle = len(listed) // 2
    halves = listed[:middle], listed[middle:]
    return [operation | {field: dict(half) if isinstance(items, Mapping) else half} for half in halves]


def _dispatch(client: MlflowClient, spool: Spool, operation: Operation) -> None:
    run_id = spool.run_id
    match operation["op"]:
        case "params":
            _log_params(client, run_id, operation["params"])
        case "metrics":
            _log_metrics(client, run_id, operation["points"])
        case "tags":
            _set_tags(client, run_id, operation["tags"])
        case "artifact":
            _log_artifact(client, run_id, spool.file_of(operation), operation["name"])
        case "image":
            _log_image(client, run_id, spool.file_of(operation), operation)
        case "data":
            _log_data(client, run_id, operation)
        case "model":
            checkpoint = found_path(operation["checkpoint"], spool.runs)
            operation = operation | {"checkpoint": str(checkpoint)}
            if not checkpoint.is_file():
                raise UnrecordableError(f"{checkpoint} is gone, so no model is recorded")
            log_checkpoint(client, run_id, operation, scratch=spool.new_file("model").parent)
        case "forget_models":
            delete_models(client, run_id)
        case "status":
            client.set_terminated(run_id, operation["status"], end_time=operation["end_time"])
        case unknown:
            raise UnrecordableError(f"no operation {unknown!r} is known to this version")


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    # MLflow refuses another value for a recorded parameter, and a resumed run logs all its parameters again.
    recorded = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in params.items() if key not in recorded]
    for some in _batches(new, MAX_PARAMS):
        client.log_batch(run_id, params=some, synchronous=True)


def _log_metrics(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    metrics = [Metric(key, value, timestamp, step) for key, value, timestamp, step in points]
    for some in _batches(metrics, MAX_METRICS):
        client.log_batch(run_id, metrics=some, synchronous=True)


def _set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str | None]) -> None:
    kept = [RunTag(key, str(value)[:MAX_TAG_LENGTH]) for key, value in tags.items() if value is not None]
    for some in _batches(kept, MAX_TAGS):
        client.log_batch(run_id, tags=some, synchronous=True)
    # MLflow refuses to delete a tag that the run does not have.
    if gone := [key for key, value in tags.items() if value is None]:
        for key in client.get_run(run_id).data.tags.keys() & set(gone):
            client.delete_tag(run_id, key)


def _log_artifact(client: MlflowClient, run_id: str, path: Path, name: str) -> None:
    """Upload `path`, whose file name is already that of the artifact, into the artifact's folder."""
    if not path.is_file():
        raise UnrecordableError(f"{path} is gone, so {name} is not recorded")
    folder = str(PurePosixPath(name).parent)
    client.log_artifact(run_id, str(path), None if folder == "." else folder)


def _log_image(client: MlflowClient, run_id: str, path: Path, record: Mapping[str, Any]) -> None:
    """Record an image of a series; one that was recorded by an earlier attempt is left alone."""
    if not path.is_file():
        raise UnrecordableError(f"{path} is gone, so {record['key']} is not recorded")
    # MLflow writes the image, then a small copy whose name it begins alike, then the tag.
    start = f"images/{record['key'].replace('/', '~')}+step+{record['step']}+timestamp+"
    recorded = (file.path for file in client.list_artifacts(run_id, "images"))
    if any(name.startswith(start) and name.endswith("+compressed.webp") for name in recorded):
        client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, True)
        return
    with Image.open(path) as image:
        client.log_image(
            run_id, image, key=record["key"], step=record["step"], timestamp=record["time"], synchronous=True
        )


def _log_data(client: MlflowClient, run_id: str, record: Mapping[str, Any]) -> None:
    classes = list(record["class_names"])
    profile = {"num_rows": record["num_rows"], "num_classes": len(classes), "sha256": record["digest"]}
    dataset = Dataset(
        # MLflow keeps one input per name and digest, and the splits of a data set share a digest. Under one
        # name, the second split of a run would be lost.
        name=f"{record['name']}/{record['context']}",
        digest=record["digest"][:MAX_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": record["source"]}, ensure_ascii=False),
        schema=json.dumps({"classes": classes[:100]}, ensure_ascii=False),
        profile=json.dumps(profile),
    )
    tag = InputTag(MLFLOW_DATASET_CONTEXT, record["context"])
    client.log_inputs(run_id, [DatasetInput(dataset, [tag])])


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
