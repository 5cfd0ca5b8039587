from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config.schema import RunConfig
from harness.models import build_model
from harness.tracking.logged_model import shrink_example
from harness.tracking.store import RunStore

FACTS = {
    "class_names": ["cat", "dog", "猫"],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.2],
    "data_name": "digits",
    "data_digest": "d",
    "epoch": 0,
    "score": 0.9,
}
PREDICT = """
import sys, json, numpy as np, mlflow, harness
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/" + sys.argv[2])
images = np.arange(3 * 40 * 32 * 3, dtype=np.uint64).reshape(3, 40, 32, 3).astype(np.uint8)
print(json.dumps(model.predict(images).tolist()))
print(harness.__file__)
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A checkpoint as training writes them, and the model in it."""
    config = RunConfig.model_validate({"model": {"kind": "lenet"}, "finetune": {"kind": "full"}})
    classifier = build_model(config.model, 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)).eval()
    state = {f"classifier.{key}": value for key, value in classifier.state_dict().items()}
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": state, "harness": {"config": config.to_dict(), **FACTS}}, path)
    return path, classifier


@pytest.fixture
def model_id(store: RunStore, checkpoint: tuple[Path, torch.nn.Module]) -> str:
    tracker = store.start_run("a", "exp", {})
    tracker.log_epoch(0, {"val/accuracy": 0.8})
    tracker.log_summary({"val/accuracy": 0.9})
    images = np.zeros((4, 200, 100, 3), np.uint8)
    metrics = {"val/accuracy": 0.9, "val/f1": 0.7}
    tracker.log_model(checkpoint[0], input_example=images, class_names=FACTS["class_names"], metrics=metrics)
    outputs = store.client.get_run(tracker.run_id).outputs
    return str(outputs.model_outputs[0].model_id)


def test_mlflow_scores_it(store: RunStore, checkpoint: tuple[Path, torch.nn.Module], model_id: str) -> None:
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    model = mlflow.pyfunc.load_model(str(store.directory / "artifacts" / "models" / model_id / "artifacts"))
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        logits = checkpoint[1](torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(model.predict(images), logits.softmax(1).numpy(), atol=1e-6)
    with pytest.raises(MlflowException, match="uint8"):
        model.predict(images.astype(np.float32))


@pytest.mark.slow
def test_it_scores_in_a_process_of_its_own_without_our_package(
    store: RunStore, checkpoint: tuple[Path, torch.nn.Module], model_id: str, tmp_path: Path
) -> None:
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    script = empty / "score.py"
    script.write_text(
        PREDICT.replace(", harness\n", "\n").replace("print(harness", "import harness\nprint(harness")
    )
    done = subprocess.run(
        [sys.executable, str(script), store.uri, model_id],
        cwd=empty,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
    )
    printed, package = done.stdout.strip().splitlines()[-2:]
    images = np.arange(3 * 40 * 32 * 3).reshape(3, 40, 32, 3).astype(np.uint8)
    with torch.inference_mode():
        logits = checkpoint[1](torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(json.loads(printed), logits.softmax(1).numpy(), atol=1e-5)
    assert package.endswith("code/harness/__init__.py")


def test_what_the_model_says_of_itself(store: RunStore, model_id: str) -> None:
    model = store.client.get_logged_model(model_id)
    assert {m.key: m.value for m in model.metrics} == {"val/accuracy": 0.9, "val/f1": 0.7}
    assert model.status.value == "READY"
    history = store.client.get_metric_history(model.source_run_id, "val/accuracy")
    assert [point.value for point in history] == [0.8, 0.9]  # the model's metric is not a second point
    folder = store.directory / "artifacts" / "models" / model_id / "artifacts"
    assert not list(folder.rglob("*.pkl"))
    assert not list(folder.rglob("__pycache__"))
    assert (folder / "code" / "harness" / "training" / "checkpoints" / "checkpoint.py").is_file()
    pins = (folder / "requirements.txt").read_text().splitlines()
    assert all("==" in pin for pin in pins)
    assert {"torch", "timm", "mlflow"} <= {pin.split("==")[0] for pin in pins}


def test_its_example_fits_its_signature(store: RunStore, model_id: str) -> None:
    from mlflow.models import Model
    from mlflow.models.utils import _enforce_schema

    folder = store.directory / "artifacts" / "models" / model_id / "artifacts"
    model = Model.load(str(folder))
    example = model.load_input_example(str(folder))
    assert example.shape == (2, 50, 25, 3)
    assert _enforce_schema(example, model.get_input_schema()).dtype == np.uint8


@pytest.mark.parametrize("shape", [(5, 3, 32, 48), (5, 32, 48, 3)])
def test_examples_of_either_layout(shape: tuple[int, ...]) -> None:
    assert shrink_example(np.zeros(shape, np.uint8)).shape == (2, 32, 48, 3)


def test_a_checkpoint_that_is_gone_is_no_accident(
    store: RunStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = store.start_run("a", "exp", {})
    images = np.zeros((1, 4, 4, 3), np.uint8)
    tracker.log_model(tmp_path / "none.ckpt", input_example=images, class_names=["a"], metrics={})
    assert "is gone" in caplog.text
    assert store.spool_of(tracker.run_id).is_empty  # it is not tried again


def test_a_checkpoint_that_made_room_takes_mlflows_copy_along(store: RunStore, model_id: str) -> None:
    from mlflow.exceptions import MlflowException

    run_id = str(store.client.get_logged_model(model_id).source_run_id)
    store.reopen_run(run_id).finish("FINISHED")
    files = store.directory / "artifacts" / "models" / model_id
    assert list(files.rglob("best.ckpt"))
    for _ in range(2):  # it may be said twice
        store.forget_checkpoint(run_id)

    assert not list(files.rglob("best.ckpt"))
    with pytest.raises(MlflowException):
        store.client.get_logged_model(model_id)
    run = store.client.get_run(run_id)
    assert run.data.tags["harness.checkpoint"] == "checkpoint removed (sweep.checkpoint_gb)"
    assert run.data.metrics["val/accuracy"] == 0.9  # the row stays
