"""Training on cached activations: the same scores as on images, sooner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config.schema import AugmentConfig, RunConfig
from harness.data import load_splits
from harness.data.feature_module import FeatureArrays, FeatureDataModule
from harness.data.features import list_features
from harness.models import ImageClassifier, apply_freezing, build_model
from harness.tracking.memory import RecordingTracker
from harness.training import features
from harness.training.evaluate import evaluate_checkpoint
from harness.training.features import cached_data, count_views
from harness.training.machine import resolve_machine
from harness.training.result import RunResult

TOLERANCE = 0.01  # of accuracy, and of loss: half precision on disk
SMALL = (
    "model=efficientnet_lite0",
    "model.image_size=32",
    "augment=none",
    "data.max_train_samples=200",
    "data.batch_size=32",
    "trainer.max_epochs=2",
)
Run = Callable[..., tuple[RunResult, RecordingTracker]]


@pytest.fixture
def config(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunConfig]:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    return lambda *overrides: tiny_config(*SMALL, *overrides)


def _prepare(config: RunConfig) -> tuple[ImageClassifier, FeatureDataModule | None]:
    splits = load_splits(config.data)
    classifier = build_model(config.model, len(splits.class_names), mean=splits.mean, std=splits.std)
    apply_freezing(classifier, config.finetune)
    return classifier, cached_data(classifier, splits, config, resolve_machine(config.trainer))


@pytest.mark.parametrize("finetune", ["finetune=linear_probe", "finetune=partial"])
def test_scores_are_those_of_the_uncached_path(
    config: Callable[..., RunConfig], run: Run, finetune: str
) -> None:
    cached, _ = run(config(finetune), "cached")
    uncached, _ = run(config(finetune, "finetune.cache_features=false"), "uncached")

    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        assert cached.metrics[name] == pytest.approx(uncached.metrics[name], abs=TOLERANCE), name


def test_all_depths_of_a_sweep_come_from_one_pass(config: Callable[..., RunConfig], run: Run) -> None:
    for number, finetune in enumerate(("finetune=linear_probe", "finetune=partial")):
        run(config(finetune), f"run{number}")

    (stored,) = list_features(Path(config().data.cache_dir))
    assert stored.about["views"] == 1


def test_the_best_checkpoint_scores_images(config: Callable[..., RunConfig], run: Run) -> None:
    result, _ = run(config("finetune=partial", "evaluate_test=true"))

    assert result.checkpoint is not None
    again = evaluate_checkpoint(result.checkpoint, split="val")
    assert again["val/accuracy"] == pytest.approx(result.score, abs=TOLERANCE)


def test_the_second_view_of_a_flip_is_the_mirror_image(config: Callable[..., RunConfig]) -> None:
    settings = config("finetune=linear_probe", "augment.flip=true")
    classifier, data = _prepare(settings)
    assert data is not None
    splits = load_splits(settings.data)
    images = torch.from_numpy(splits.train.gather(np.arange(5))).permute(0, 3, 1, 2)
    classifier.enter_at_pixels()
    classifier.eval()
    with torch.inference_mode():
        pooled = classifier.network.forward_head(  # type: ignore[operator]
            classifier.network.forward_features(classifier.preprocess(images.flip(3))),  # type: ignore[operator]
            pre_logits=True,
        )

    mirrored = data.train.rows[len(splits.train) : len(splits.train) + 5]

    assert np.allclose(mirrored, pooled.numpy(), atol=2e-3 * float(pooled.abs().max()))


def test_an_image_shows_every_view_in_turn_and_every_image_comes_once() -> None:
    rows = np.zeros((30, 2), dtype=np.float16)
    data = FeatureDataModule(
        FeatureArrays(rows, np.arange(10), num_views=3), FeatureArrays(rows[:4], np.arange(4)), 4, seed=1
    )

    orders = [data.order(epoch) for epoch in range(3)]

    for order in orders:
        assert sorted(order % 10) == list(range(10))
    assert sorted(np.concatenate(orders)) == list(range(30))  # each image in each view once
    assert len({tuple(sorted(order)) for order in orders}) == 3
    features_B, labels_B = next(iter(data.train_dataloader()))
    assert features_B.shape == (4, 2)
    assert labels_B.tolist() == (orders[0][:4] % 10).tolist()


@pytest.mark.parametrize(
    ("augment", "wanted", "views"),
    [
        (AugmentConfig(), 4, 1),
        (AugmentConfig(flip=True), 4, 2),
        (AugmentConfig(flip=True), 1, 1),
        (AugmentConfig(flip=True, crop_padding=4), 4, 4),
    ],
)
def test_no_more_views_are_kept_than_there_are(augment: AugmentConfig, wanted: int, views: int) -> None:
    assert count_views(augment, wanted) == views


def test_augmented_views_differ_from_the_image_and_from_each_other(config: Callable[..., RunConfig]) -> None:
    _, data = _prepare(config("finetune=linear_probe", "augment=standard", "finetune.feature_views=3"))

    assert data is not None
    first, second, third = np.asarray(data.train.rows, dtype=np.float32).reshape(3, 200, -1)
    for one, other in ((first, second), (first, third), (second, third)):
        assert (one != other).any(axis=1).mean() > 0.9  # a draw may change nothing


def test_another_image_size_is_another_entry(config: Callable[..., RunConfig]) -> None:
    for size in (32, 40):
        _prepare(config("finetune=linear_probe", f"model.image_size={size}"))

    assert len(list_features(Path(config().data.cache_dir))) == 2


def test_without_room_it_trains_on_images(config: Callable[..., RunConfig]) -> None:
    _, data = _prepare(config("finetune=linear_probe", "data.feature_cache_gb=0.0001"))

    assert data is None


def test_less_room_keeps_the_wanted_depth_alone(config: Callable[..., RunConfig]) -> None:
    settings = config("finetune=linear_probe", "data.feature_cache_gb=0.001")
    _, data = _prepare(settings)

    assert data is not None
    (stored,) = list_features(Path(settings.data.cache_dir))
    assert stored.num_bytes < 1e6


def test_a_stop_while_the_backbone_runs_is_an_interruption(
    config: Callable[..., RunConfig], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, _ = run(config("finetune=linear_probe"), stop_requested=lambda: True)
    finished, _ = run(config("finetune=linear_probe"))

    assert stopped.status == "interrupted"
    assert finished.status == "finished"


def test_large_activations_are_kept_in_float32() -> None:
    assert features._dtype(torch.tensor([1.0, 2.0])) == "float16"
    assert features._dtype(torch.tensor([1.0, 2e4])) == "float32"


@pytest.mark.parametrize(
    "override", ["augment.mixup_alpha=0.2", "augment.cutmix_alpha=1.0", "evaluation.tta=flip"]
)
def test_what_must_see_images_is_not_cached(config: Callable[..., RunConfig], override: str) -> None:
    _, data = _prepare(config("finetune=linear_probe", override))

    assert data is None
