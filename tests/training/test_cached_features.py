"""Training on cached activations: the same scores as on images, sooner."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config.schema import AugmentConfig, EfficientNetLite0, RunConfig, TimmModel
from harness.data import load_splits
from harness.data.datamodule import ImageDataModule
from harness.data.epochs import EpochOrder
from harness.data.features.cache import list_features
from harness.data.features.datamodule import FeatureArrays, FeatureDataModule
from harness.data.features.entry import FeatureEntry
from harness.data.splits import ImageArrays
from harness.models import ImageClassifier, apply_freezing, build_model
from harness.training import cached_features
from harness.training.cached_features import load_or_compute_features, settings_in_key
from harness.training.devices.machine import resolve_machine
from harness.training.evaluate import evaluate_checkpoint
from harness.training.image_views import NEW_VIEWS, count_views
from harness.training.result import RunResult
from tests.helpers.recording_tracker import RecordingTracker

TOLERANCE = 0.01  # of accuracy, and of loss: half precision on disk
SMALL = (
    "model=efficientnet_lite0",
    "model.image_size=32",
    "augment=none",
    "data.max_train_samples=200",
    "data.batch_size=32",
    "trainer.max_epochs=2",
    "trainer.precision=fp32",
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
    images = ImageDataModule(splits, config.data, config.augment, config.seed)
    return classifier, load_or_compute_features(classifier, images, config, resolve_machine(config.trainer))


@pytest.mark.parametrize(
    ("finetune", "flip"),
    [
        ("linear_probe", "false"),
        ("partial", "true"),
        pytest.param("linear_probe", "alternating", marks=pytest.mark.slow),
    ],
)
def test_scores_are_those_of_the_uncached_path(
    config: Callable[..., RunConfig], run: Run, finetune: str, flip: str
) -> None:
    how = (f"finetune={finetune}", f"augment.flip={flip}")
    cached, with_cache = run(config(*how), "cached")
    uncached, without = run(config(*how, "finetune.cache_features=false"), "uncached")

    assert (with_cache.params["features.cached"], without.params["features.cached"]) == ("true", "false")
    assert with_cache.params["features.views"] == without.params["features.views"]
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        assert cached.metrics[name] == pytest.approx(uncached.metrics[name], abs=TOLERANCE), name


def test_entries_of_earlier_versions_hold() -> None:
    """Literal, as the versions before dropout and stems, and before AugMix, hashed them."""
    lite = {"kind": "efficientnet_lite0", "pretrained": True, "image_size": 224}
    assert settings_in_key(EfficientNetLite0()) == lite
    timms = {
        "kind": "timm",
        "name": "resnet18",
        "pretrained": True,
        "weights": None,
        "image_size": None,
        "drop_rate": 0.0,
        "drop_path_rate": 0.0,
    }
    assert settings_in_key(TimmModel(name="resnet18", pretrained=True)) == timms
    flipped = {
        "flip": True,
        "crop_padding": 4,
        "policy": "none",
        "rand_num_ops": 2,
        "rand_magnitude": 9,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
        "cutout_size": 0,
        "erasing_probability": 0.0,
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
    }
    assert settings_in_key(AugmentConfig(flip=True, crop_padding=4)) == flipped
    blurred = AugmentConfig(flip=True, crop_padding=4, blur_sigma=1.0)
    assert settings_in_key(blurred) == {**flipped, "blur_sigma": 1.0}
    changed = EfficientNetLite0(stem="small_image", drop_path_rate=0.1)
    assert settings_in_key(changed) == {**lite, "stem": "small_image", "drop_path_rate": 0.1}


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
        FeatureArrays(rows, np.arange(10), num_views=3),
        FeatureArrays(rows[:4], np.arange(4)),
        4,
        EpochOrder(np.arange(10), 1),
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
        (AugmentConfig(), None, 1),
        (AugmentConfig(), 4, 1),
        (AugmentConfig(flip=True), None, 2),
        (AugmentConfig(flip="alternating"), None, 2),
        (AugmentConfig(flip=True, crop_padding=4), None, None),
        (AugmentConfig(flip=True, mixup_alpha=0.2), None, None),
        (AugmentConfig(flip=True), 4, 2),
        (AugmentConfig(flip=True), 1, 1),
        (AugmentConfig(flip=True, crop_padding=4), 4, 4),
    ],
)
def test_no_more_views_are_kept_than_there_are(
    augment: AugmentConfig, wanted: int | None, views: int | None
) -> None:
    assert count_views(augment, wanted) == views


def test_augmented_views_differ_from_the_image_and_from_each_other(config: Callable[..., RunConfig]) -> None:
    _, data = _prepare(config("finetune=linear_probe", "augment=standard", "finetune.feature_views=3"))

    assert data is not None
    first, second, third = np.asarray(data.train.rows, dtype=np.float32).reshape(3, 200, -1)
    for one, other in ((first, second), (first, third), (second, third)):
        assert (one != other).any(axis=1).mean() > 0.9  # a draw may change nothing


@pytest.mark.parametrize("flip", ["true", "alternating"])
@pytest.mark.parametrize("samples", ["null", "170"])
def test_each_epoch_mirrors_the_images_that_it_would_without_the_cache(
    config: Callable[..., RunConfig], flip: str, samples: str
) -> None:
    settings = config("finetune=linear_probe", f"augment.flip={flip}", f"data.samples_per_epoch={samples}")
    _, data = _prepare(settings)
    assert data is not None
    splits = load_splits(settings.data)
    count, size = len(splits.train), settings.data.batch_size
    images = ImageDataModule(splits, settings.data, settings.augment, settings.seed)

    for epoch in (0, 1, 4):
        mirrored, positions = np.divmod(data.order(epoch), count)
        assert positions.tolist() == images.order(epoch).tolist()
        for index, start in enumerate(range(0, len(positions), size)):
            rows = slice(start, start + size)
            batch = torch.from_numpy(splits.train.gather(positions[rows])).permute(0, 3, 1, 2)
            is_mirrored = torch.from_numpy(mirrored[rows] == 1)[:, None, None, None]
            expected = torch.where(is_mirrored, batch.flip(3), batch)
            assert torch.equal(images.augment(batch, epoch, index), expected)


def test_augmentation_that_draws_anew_is_cached_only_where_views_are_asked_for(
    config: Callable[..., RunConfig], run: Run
) -> None:
    how = ("finetune=linear_probe", "augment=strong", "trainer.max_epochs=1")
    _, unasked = run(config(*how), "unasked")
    _, asked = run(config(*how, "finetune.feature_views=3"), "asked")

    assert (unasked.params["features.cached"], unasked.params["features.views"]) == ("false", NEW_VIEWS)
    assert (asked.params["features.cached"], asked.params["features.views"]) == ("true", "3")


def test_views_that_were_asked_for_and_cannot_be_had_are_a_warning(
    config: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    _prepare(config("finetune=linear_probe", "augment=mix", "finetune.feature_views=2"))

    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "features: not cached, mixup and cutmix mix images" in record.getMessage()


def test_drawn_views_depend_on_the_seed_and_are_kept_apart(config: Callable[..., RunConfig]) -> None:
    rows = []
    for seed in (0, 1, 0):
        how = ("finetune=linear_probe", "augment=standard", "finetune.feature_views=2", f"seed={seed}")
        _, data = _prepare(config(*how))
        assert data is not None
        rows.append(np.asarray(data.train.rows))

    assert np.array_equal(rows[0], rows[2])
    assert np.array_equal(rows[0][:200], rows[1][:200]), "the first view is the image itself"
    assert not np.array_equal(rows[0][200:], rows[1][200:])
    assert len(list_features(Path(config().data.cache_dir))) == 2


def test_mirrored_views_do_not_depend_on_the_seed(config: Callable[..., RunConfig]) -> None:
    for seed in (0, 1):
        _prepare(config("finetune=linear_probe", "augment.flip=true", f"seed={seed}"))

    assert len(list_features(Path(config().data.cache_dir))) == 1


@pytest.mark.slow
def test_a_subset_takes_the_features_of_all_images_where_they_are_complete(
    config: Callable[..., RunConfig],
) -> None:
    """With wrong labels and over-sampling, too: neither changes an image."""
    how = ("finetune=linear_probe", "augment.flip=true", "data.max_train_samples=null")
    few = (*how, "data.images_per_class=12", "data.label_noise=0.25")
    folder = Path(config().data.cache_dir)
    _, alone = _prepare(config(*few))
    [own] = list_features(folder)
    rows = _all_rows(alone)
    _prepare(config(*how, "data.sampling=over"))
    _, resumed = _prepare(config(*few))  # its own entry is there: the same bits
    assert all(map(np.array_equal, _all_rows(resumed), rows))
    assert len(list_features(folder)) == 2

    shutil.rmtree(own.folder)
    _, found = _prepare(config(*few))
    [whole] = list_features(folder)
    for one, other in zip(_all_rows(found), rows, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-3)  # the last bit of float16

    (whole.folder / "done" / "0.json").unlink()  # as if another process were still computing it
    _prepare(config(*few))
    assert len(list_features(folder)) == 2


@pytest.mark.slow
def test_the_folds_of_cross_validation_share_the_features_of_all_images(
    config: Callable[..., RunConfig],
) -> None:
    found = {}
    for fold in (0, 1):
        how = ("augment.flip=true", "data.max_train_samples=null", "data.folds=2", f"data.fold={fold}")
        settings = config("finetune=linear_probe", *how)
        splits = load_splits(settings.data)
        _, data = _prepare(settings)
        assert data is not None
        [val] = data.val.stream([np.arange(len(data.val))])
        [train] = data.train.stream([np.arange(len(data.train))])
        np.testing.assert_array_equal(data.train.labels[: len(train)], splits.train.labels)
        np.testing.assert_array_equal(data.val.labels, splits.val.labels)
        found[fold] = dict(zip(splits.train.indices, train, strict=True)), val, splits.val.indices
    assert len(list_features(Path(config().data.cache_dir))) == 1
    trained, _, _ = found[0]
    _, val, indices = found[1]
    assert len(val) == len(trained) > 500  # what validates one fold trains the other
    for row, index in zip(val, indices, strict=True):
        np.testing.assert_array_equal(row, trained[index])


def _all_rows(data: FeatureDataModule | None) -> list[np.ndarray]:
    """Return the training rows in both views, the training labels, and the validation rows."""
    assert data is not None
    [train] = data.train.stream([np.arange(2 * len(data.train))])
    [val] = data.val.stream([np.arange(len(data.val))])
    return [train.astype(np.float32), data.train.labels, val.astype(np.float32)]


def test_images_divided_otherwise_are_another_entry(config: Callable[..., RunConfig]) -> None:
    """The same rows in the same order, of which one more trains: labels would be another image's."""
    settings = config("finetune=linear_probe", "augment.flip=true")
    splits = load_splits(settings.data)
    joined = np.concatenate([splits.train.gather(slice(None)), splits.val.gather(slice(None))])
    labels = np.concatenate([splits.train.labels, splits.val.labels])
    for num_train in (200, 201):
        parts = [
            ImageArrays(joined[rows], labels[rows], np.arange(len(labels[rows])))
            for rows in (slice(num_train), slice(num_train, None))
        ]
        other = replace(splits, train=parts[0], val=parts[1])
        classifier = build_model(settings.model, 10, mean=splits.mean, std=splits.std)
        apply_freezing(classifier, settings.finetune)
        images = ImageDataModule(other, settings.data, settings.augment, settings.seed)
        data = load_or_compute_features(classifier, images, settings, resolve_machine(settings.trainer))
        assert data is not None
        assert (len(data.train), len(data.val.rows)) == (num_train, len(joined) - num_train)
        again = data.train.rows[num_train : num_train + 1], data.train.rows[:1]  # the first image's two views
        assert not np.array_equal(*again)

    assert len(list_features(Path(settings.data.cache_dir))) == 2


@pytest.mark.parametrize("library", ["torch", "timm"])
def test_another_version_of_a_library_is_another_entry(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    _prepare(config("finetune=linear_probe"))
    known = cached_features.version
    monkeypatch.setattr(cached_features, "version", lambda name: "0.1" if name == library else known(name))
    _prepare(config("finetune=linear_probe"))

    assert len(list_features(Path(config().data.cache_dir))) == 2


def test_activations_beyond_float16_are_kept_in_float32(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image of the last chunk has them, which the first look at two images does not see."""
    computed, chunks = cached_features.trunk_activations, []

    def with_a_peak(*args: object) -> dict[int, torch.Tensor]:
        found = computed(*args)  # type: ignore[arg-type]
        chunks.append(len(found[0]))
        if sum(chunks) > 300:
            found[0][-1] = 7e4
        return found

    monkeypatch.setattr(cached_features, "trunk_activations", with_a_peak)
    for _ in range(2):  # made, then found
        _, data = _prepare(config("finetune=linear_probe"))
        assert data is not None
        assert data.train.rows.dtype == np.float32
        assert np.isfinite(data.val.rows).all()
        assert data.val.rows[-1].max() == np.float32(7e4)


def test_a_disk_that_fills_up_while_they_are_computed_means_images(
    config: Callable[..., RunConfig],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FeatureEntry, "_fill", full)
    caplog.set_level("INFO")
    result, tracker = run(config("finetune=linear_probe"))

    assert (result.status, tracker.params["features.cached"]) == ("finished", "false")
    assert "features: not cached, the disk is full" in caplog.text


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
    assert cached_features._dtype(torch.tensor([1.0, 2.0])) == "float16"
    assert cached_features._dtype(torch.tensor([1.0, 2e4])) == "float32"


@pytest.mark.parametrize(
    "override", ["augment.mixup_alpha=0.2", "augment.cutmix_alpha=1.0", "evaluation.tta=flip"]
)
def test_what_must_see_images_is_not_cached(config: Callable[..., RunConfig], override: str) -> None:
    _, data = _prepare(config("finetune=linear_probe", override))

    assert data is None
