"""What every Tracker does, whatever it records into."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from harness.config.schema import TrackingConfig
from harness.tracking import Tracker
from harness.tracking.mlflow_tracker import MlflowTracker
from harness.tracking.store import RunStore, open_store
from tests.helpers.recording_tracker import RecordingTracker


@dataclass
class Seen:
    """A run's record, in a form that both implementations can be brought to."""

    params: dict[str, str]
    curve: list[float]  # val/loss over the epochs
    latest: dict[str, float]
    tags: dict[str, str]
    data: list[str]
    num_models: int
    status: str


def read_memory(tracker: RecordingTracker) -> Seen:
    latest: dict[str, float] = {}
    for metrics in tracker.epochs.values():
        latest |= metrics
    return Seen(
        params=tracker.params,
        curve=[metrics["val/loss"] for metrics in tracker.epochs.values()],
        latest=latest | tracker.summary,
        tags=tracker.tags,
        data=[record["context"] for record in tracker.data],
        num_models=len(tracker.models),
        status=tracker.status,
    )


def read_mlflow(store: RunStore, run_id: str) -> Seen:
    run = store.client.get_run(run_id)
    has_curve = "val/loss" in run.data.metrics
    return Seen(
        params=run.data.params,
        curve=[m.value for m in store.client.get_metric_history(run_id, "val/loss")] if has_curve else [],
        latest=run.data.metrics,
        tags=run.data.tags,
        data=[i.tags[0].value for i in run.inputs.dataset_inputs],
        num_models=len(run.outputs.model_outputs) if run.outputs else 0,
        status=run.info.status,
    )


@dataclass
class Case:
    tracker: Tracker
    resume: Callable[[], Tracker]  # as a new process would
    see: Callable[[], Seen]
    read_artifact: Callable[[str], bytes]
    read_images: Callable[[], dict[tuple[str, int], np.ndarray]]


@pytest.fixture(params=["memory", "mlflow"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param == "memory":
        memory = RecordingTracker()
        return Case(
            memory,
            lambda: memory,
            lambda: read_memory(memory),
            lambda name: memory.artifacts[name],
            lambda: memory.images,
        )
    shutil.copy(request.getfixturevalue("empty_databases")[1], tmp_path)
    store = open_store(TrackingConfig(dir=str(tmp_path)))
    tracker: MlflowTracker = store.start_run("a run", "an experiment", {"harness.kind": "train"})
    return Case(
        tracker,
        lambda: store.start_run(None, "an experiment", {}, run_id=tracker.run_id),
        lambda: read_mlflow(store, tracker.run_id),
        lambda name: Path(store.client.download_artifacts(tracker.run_id, name)).read_bytes(),
        lambda: read_mlflow_images(store, tracker.run_id),
    )


def read_mlflow_images(store: RunStore, run_id: str) -> dict[tuple[str, int], np.ndarray]:
    """Return the images as MLflow's grid finds them: by the names of their files."""
    found: dict[tuple[str, int], np.ndarray] = {}
    for file in store.client.list_artifacts(run_id, "images"):
        key, _, step, *_ = file.path.removeprefix("images/").split("+")
        if file.path.endswith(".png"):
            assert (key.replace("~", "/"), int(step)) not in found
            path = store.client.download_artifacts(run_id, file.path)
            found[key.replace("~", "/"), int(step)] = np.asarray(Image.open(path))
    return found


def log_data(tracker: Tracker, context: str) -> None:
    tracker.log_data(
        name="digits",
        digest="d" * 64,
        source="somewhere",
        num_rows=9,
        class_names=["a", "b"],
        context=context,
    )


def log_model(tracker: Tracker, checkpoint: Path) -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    tracker.log_model(checkpoint, input_example=images, class_names=["a", "b"], metrics={"val/accuracy": 0.9})


def test_parameters_are_flat_and_keep_their_first_value(case: Case) -> None:
    config = {"optim": {"lr": 0.001, "clip": None}, "model": {"kind": "lenet", "on": True, "empty": {}}}
    case.tracker.log_params(config)
    case.resume().log_params({"optim": {"lr": 0.1, "new": [1, 2]}})
    expected = {"optim.lr": "0.001", "optim.clip": "null", "model.kind": "lenet", "model.on": "true"}
    assert case.see().params == expected | {"model.empty": "{}", "optim.new": "[1, 2]"}


def test_hundreds_of_parameters_and_long_ones(case: Case) -> None:
    case.tracker.log_params({f"key{i}": i for i in range(230)} | {"long": "x" * 10_000})
    params = case.see().params
    assert len(params) == 231
    assert params["key229"] == "229"
    assert params["long"].startswith("x" * 5000)


def test_an_epoch_is_recorded_once(case: Case) -> None:
    case.tracker.log_epoch(0, {"val/loss": 3.0})
    case.tracker.log_epoch(1, {"val/loss": 2.0})
    again = case.resume()
    for epoch, loss in enumerate([9.0, 9.0, 1.0]):
        again.log_epoch(epoch, {"val/loss": loss})
    assert case.see().curve == [3.0, 2.0, 1.0]


def test_the_summary_is_what_lists_show(case: Case) -> None:
    case.tracker.log_epoch(0, {"val/loss": 1.0, "val/accuracy": 0.9})
    case.tracker.log_epoch(1, {"val/loss": 2.0, "val/accuracy": 0.4})
    case.tracker.log_summary({"val/accuracy": 0.9})
    again = case.resume()
    again.log_summary({"val/accuracy": 0.9, "test/accuracy": 0.8})
    latest = case.see().latest
    assert (latest["val/accuracy"], latest["val/loss"], latest["test/accuracy"]) == (0.9, 2.0, 0.8)


def test_a_summary_that_repeats_what_was_measured_leaves_the_curve_alone(case: Case) -> None:
    for epoch, loss in enumerate([3.0, 2.0]):
        case.tracker.log_epoch(epoch, {"val/loss": loss})
    case.tracker.log_summary({"val/loss": 2.0})
    case.resume().log_summary({"val/loss": 2.0})
    assert case.see().curve == [3.0, 2.0]


def test_a_summary_of_another_model_replaces_the_first(case: Case) -> None:
    case.tracker.log_summary({"test/accuracy": 0.8, "test/loss": 1.0})
    case.resume().log_summary({"test/accuracy": 0.7})
    assert case.see().latest["test/accuracy"] == 0.8, "a resumed run may repeat a call"
    for _ in range(2):
        case.resume().log_summary({"test/accuracy": 0.9, "test/loss": 1.0}, replaces=True)
    assert case.see().latest["test/accuracy"] == 0.9
    case.resume().log_summary({"test/accuracy": 0.85}, replaces=True)
    assert case.see().latest["test/accuracy"] == 0.85
    assert case.see().latest["test/loss"] == 1.0


def test_a_value_that_another_model_has_not_is_withdrawn(case: Case) -> None:
    case.tracker.log_summary({"test/temperature": math.nan})
    assert "test/temperature" not in case.see().latest
    case.tracker.log_summary({"test/temperature": 1.5}, replaces=True)
    for _ in range(2):
        case.resume().log_summary({"test/temperature": math.nan}, replaces=True)
        assert math.isnan(case.see().latest.get("test/temperature", math.nan))
    case.resume().log_summary({"test/temperature": 1.2}, replaces=True)
    assert case.see().latest["test/temperature"] == 1.2


def test_tags_may_change(case: Case) -> None:
    case.tracker.set_tags({"a": "1", "b": "2"})
    case.tracker.set_tags({"b": "3"})
    case.tracker.set_tags({})
    assert {"a": "1", "b": "3"}.items() <= case.see().tags.items()


def test_artifacts(case: Case) -> None:
    picture = Figure(figsize=(1, 1))
    case.tracker.log_text("héllo 中", "config.yaml")
    case.tracker.log_dict({"counts": [[1]], "name": "猫"}, "confusion/val.json")
    case.tracker.log_figure(picture, "confusion/val.png")
    case.tracker.log_text("notes", "deep/er/notes.txt")
    case.tracker.log_bytes(bytes(range(256)), "predictions/val.npz")
    assert case.read_artifact("predictions/val.npz") == bytes(range(256))
    assert case.read_artifact("config.yaml").decode() == "héllo 中"
    assert json.loads(case.read_artifact("confusion/val.json")) == {"counts": [[1]], "name": "猫"}
    assert case.read_artifact("confusion/val.png").startswith(b"\x89PNG")
    assert case.read_artifact("deep/er/notes.txt") == b"notes"


def test_an_image_is_recorded_once_per_key_and_step(case: Case) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    case.tracker.log_image(images[0], "val/examples", 0)
    case.tracker.log_image(images[1], "val/examples", 10)
    again = case.resume()
    again.log_image(images[2], "val/examples", 10)
    again.log_image(images[2], "val/other", 10)
    found = case.read_images()
    assert set(found) == {("val/examples", 0), ("val/examples", 10), ("val/other", 10)}
    assert np.array_equal(found["val/examples", 10], images[1])


def test_data_is_recorded_once_per_use(case: Case) -> None:
    for tracker in (case.tracker, case.resume()):
        log_data(tracker, "training")
        log_data(tracker, "validation")
    assert sorted(case.see().data) == ["training", "validation"]


def test_a_model_is_recorded_once_per_checkpoint(case: Case, tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"first")
    log_model(case.tracker, checkpoint)
    log_model(case.resume(), checkpoint)
    assert case.see().num_models == 1
    checkpoint.write_bytes(b"better")
    log_model(case.tracker, checkpoint)
    assert case.see().num_models == 2


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_end_is_told_truthfully(case: Case, status: Any) -> None:
    assert case.see().status == "RUNNING"
    case.tracker.finish(status)
    assert case.see().status == status


def test_a_tag_can_be_removed(case: Case) -> None:
    case.tracker.set_tags({"best.a": "1", "best.b": "2"})
    case.resume().set_tags({"best.a": None, "best.b": "3", "best.never": None})

    tags = case.see().tags
    assert tags["best.b"] == "3"
    assert not {"best.a", "best.never"} & tags.keys()
