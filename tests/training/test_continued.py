"""Continued training (`init_from`): which weights are taken, for which classes, and what is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.cli.main import main
from harness.config.compose import compose_run, compose_sweep
from harness.config.schema import (
    DigitsData,
    EfficientNetLite0,
    ModelConfig,
    RunConfig,
    ScratchModel,
    TrackingConfig,
)
from harness.data import load_splits
from harness.errors import CheckpointError, ConfigError, DataError, HarnessError, ModelError
from harness.models import ImageClassifier, build_model
from harness.tracking.runs import get_run
from harness.training import continued
from harness.training.checkpoints.checkpoint import load_checkpoint
from harness.training.continued import (
    Forgetting,
    Origin,
    find_origin,
    load_origin,
    measure_forgetting,
    take_weights,
)
from harness.training.devices.machine import Machine
from harness.training.train import train
from tests.helpers.recording_tracker import RecordingTracker
from tests.training.conftest import stop_after

LENET = ScratchModel(kind="lenet")
LITE = EfficientNetLite0(image_size=32)


def origin_of(
    model: ModelConfig, class_names: tuple[str, ...], classifier: ImageClassifier | None = None
) -> Origin:
    """A trained model: its weights are random."""
    torch.manual_seed(1)
    built = classifier or build_model(model, len(class_names), load_weights=False)
    return Origin("run a", "a" * 32, "a" * 32, built.eval(), class_names, model, DigitsData(), "0" * 64, 4)


@pytest.mark.parametrize("model", [LENET, LITE])
def test_rows_of_the_head_follow_the_names_of_the_classes(model: ModelConfig) -> None:
    origin = origin_of(model, ("cat", "dog", "eel"))
    torch.manual_seed(2)
    classifier = build_model(model, 3, load_weights=False)
    fresh = {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}
    take_weights(classifier, model, ("eel", "fox", "cat"), origin)

    head = {"head.weight", "head.bias"} if model is LENET else {"classifier.weight", "classifier.bias"}
    now = classifier.network.state_dict()
    assert head <= now.keys()
    for name, tensor in origin.weights.items():
        if name not in head:
            assert torch.equal(now[name], tensor), name
            continue
        assert torch.equal(now[name][0], tensor[2])
        assert torch.equal(now[name][2], tensor[0])
        # As a new head begins: from scratch at random, on a pretrained network at zero.
        assert torch.equal(now[name][1], fresh[name][1] if model is LENET else torch.zeros_like(tensor[0]))


def test_what_cannot_be_continued_is_one_line() -> None:
    origin = origin_of(LENET, ("cat", "dog"))
    for model, error, fault in (
        (ScratchModel(kind="keras_cnn"), ModelError,
         r"run a \(model=lenet model.image_size=32\) has another architecture than model=keras_cnn .*: "
         r"\d+ tensors differ, first \S+ \(\S+ there, \S+ here\), .*: set the section model as it was there"),
        (ScratchModel(kind="lenet", image_size=48), ModelError, r"\d+ tensors? differ"),
        (ScratchModel(kind="lenet", normalisation="none"), ConfigError, "set model.normalisation=data"),
    ):  # fmt: skip
        with pytest.raises(error, match=fault):
            take_weights(build_model(model, 2), model, ("cat", "dog"), origin)


def test_networks_of_any_image_size_continue_at_another() -> None:
    model = ScratchModel(kind="resnet18")
    larger = model.model_copy(update={"image_size": 48})
    classifier = build_model(larger, 2)
    take_weights(classifier, larger, ("cat", "dog"), origin_of(model, ("cat", "dog")))
    assert classifier.image_size == 48


def test_the_digest_is_of_weights_normalisation_and_classes() -> None:
    origin = origin_of(LENET, ("cat", "dog"))
    assert origin.digest == origin_of(LENET, ("cat", "dog")).digest
    assert origin.digest != replace(origin, class_names=("dog", "cat")).digest
    other = origin_of(LENET, ("cat", "dog"))
    other.classifier.network.get_parameter("head.bias").data[0] += 1e-7
    assert origin.digest != other.digest


@pytest.mark.usefixtures("made_store")
def test_a_model_that_is_not_there_is_one_line(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "no.ckpt").write_text("nothing")
    for reference, fault in (
        ("nobody", "init_from=nobody: no run 'nobody' is recorded"),
        ("no/where", "init_from=no/where: neither a checkpoint nor a bundle's folder lies there"),
        (f"{tmp_path}/no.ckpt", f"init_from={tmp_path}/no.ckpt: .* is damaged"),
    ):
        config = tiny_config(f"init_from={reference}")
        with pytest.raises(HarnessError, match=fault):
            load_origin(find_origin(config), config)


def test_loaded_weights_may_be_frozen_and_searched() -> None:
    assert compose_run(["model=lenet", "finetune=linear_probe", "init_from=a"]).init_from == "a"
    with pytest.raises(ConfigError, match=r"would freeze random weights of lenet.*or init_from"):
        compose_run(["model=lenet", "finetune=linear_probe"])
    plan = compose_sweep(["sweep.space.init_from={type: choice, values: [one, two]}"])
    assert plan.compose_trial({"init_from": "two"}).init_from == "two"


def test_forgetting_counts_images_of_classes_that_both_know(
    tiny_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    splits = load_splits(config.data)
    classes = splits.class_names
    origin = replace(origin_of(LENET, classes), data=config.data, data_digest=splits.digest)
    labels = splits.val.labels
    right = np.eye(10)[labels]
    wrong = np.roll(right, 1, axis=1)
    # The run has lost "0" and "1", and has the others in another order, with a new class before them.
    now = ("new", *reversed(classes[2:]))
    columns = [len(now) - 1 - (label - 2) for label in labels]
    after = np.eye(9)[np.clip(columns, 0, 8)]
    after[np.flatnonzero(labels == 5)] = np.eye(9)[0]  # what was learnt since replaces "5"
    before = np.where((labels == 3)[:, None], wrong, right)
    answers = iter([before, after])
    monkeypatch.setattr(continued, "predict", lambda *_: (next(answers), None))
    monkeypatch.setattr(continued, "load_checkpoint", lambda path: path)
    monkeypatch.setattr(continued, "restore_classifier", lambda path: origin.classifier)
    machine = Machine(torch.device("cpu"), "fp32")
    found = measure_forgetting(origin, config, replace(splits, class_names=now), Path("kept"), machine)

    shared = labels >= 2
    assert found.num_images == shared.sum()
    assert found.num_gone == (~shared).sum()
    assert found.before == pytest.approx(1 - (labels[shared] == 3).mean())
    assert found.after == pytest.approx(1 - (labels[shared] == 5).mean())
    assert found.num_trained_on == 0
    assert found.metrics["forgetting"] == found.before - found.after
    trained = replace(splits, class_names=classes, train=splits.val)
    answers = iter([right, right])
    assert measure_forgetting(origin, config, trained, Path("kept"), machine).num_trained_on == len(labels)


def test_old_images_that_are_others_are_not_scored(tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config()
    splits = load_splits(config.data)
    origin = replace(origin_of(LENET, splits.class_names), data=config.data)
    with pytest.raises(
        DataError, match=f"now gives images with digest {splits.digest[:12]}, not 000000000000"
    ):
        measure_forgetting(origin, config, splits, Path("kept"), Machine(torch.device("cpu"), "fp32"))
    assert "3 more are of classes that are gone" in str(Forgetting(0.5, 0.25, 8, 3, 0))


@pytest.mark.slow
@pytest.mark.usefixtures("made_store")
def test_a_run_a_bundle_and_a_checkpoint_continue_alike_and_resume(tmp_path: Path) -> None:
    small = ("data=digits", "model=lenet", "data.max_train_samples=300", "tracking.log_model=false",
             "trainer.precision=fp32", "evaluation.pictures=none", "optim=sgd")  # fmt: skip
    tracking = TrackingConfig(dir=str(tmp_path / "mlruns"))
    assert main(["train", *small, "optim.lr=0.1", "trainer.max_epochs=2", "tracking.run_name=first"]) == 0
    first = get_run(tracking, "first")
    checkpoint = tmp_path / "mlruns" / "checkpoints" / first.run_id / "best.ckpt"
    assert main(["export", "--run", "first", "--output", str(tmp_path / "exports")]) == 0
    bundle = next((tmp_path / "exports").iterdir())

    # With almost no learning rate, everything is as it was: the score, and nothing is forgotten.
    still = []
    for number, reference in enumerate(("first", bundle, checkpoint)):
        name = f"still{number}"
        assert main(["train", *small, "optim.lr=1e-12", "trainer.max_epochs=1", f"init_from={reference}",
                     f"tracking.run_name={name}"]) == 0  # fmt: skip
        still.append(get_run(tracking, name))
    for run in still:
        assert run.metrics["best/val/accuracy"] == first.metrics["best/val/accuracy"]
        assert run.metrics["old_val/accuracy_before"] == first.metrics["best/val/accuracy"]
        assert (run.metrics["forgetting"], run.metrics["old_val/images"]) == (0.0, 144.0)
        assert run.params["init.digest"] == still[0].params["init.digest"]
    assert [run.params["init_from"] for run in still] == [first.run_id, str(bundle), str(checkpoint)]
    assert [run.params["init.run_id"] for run in still[:2]] == [first.run_id] * 2

    config = compose_run([*small, "optim.lr=0.1", "trainer.max_epochs=3", "init_from=first"])
    whole = train(config, tracker=RecordingTracker(), checkpoint_dir=tmp_path / "whole")
    train(config, tracker=RecordingTracker(), checkpoint_dir=tmp_path / "cut", **stop_after(1))
    tracker = RecordingTracker()
    resumed = train(config, tracker=tracker, checkpoint_dir=tmp_path / "cut")
    assert resumed.metrics["val/loss"] == whole.metrics["val/loss"]
    assert tracker.summary["forgetting"] == whole.metrics["forgetting"]
    weights = [load_checkpoint(tmp_path / name / "last.ckpt").state_dict for name in ("whole", "cut")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    other = config.model_copy(update={"init_from": str(tmp_path / "whole" / "best.ckpt")})
    with pytest.raises(CheckpointError, match="began with other weights"):
        train(other, tracker=RecordingTracker(), checkpoint_dir=tmp_path / "cut")
