from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from harness.config.schema import ScratchKind, ScratchModel, TimmModel
from harness.models import build_model
from harness.pictures.curves import learning_curves
from harness.pictures.embedding import embedding_figure, lay_out, penultimate_features, sample
from harness.pictures.layers import feature_maps_figure, filters_figure
from harness.pictures.run import draw_all
from tests.helpers.drawing import drawn
from tests.pictures.conftest import assert_no_overlap, noise, note_of, some_predictions


@pytest.mark.parametrize("num_epochs", [1, 3, 300])
def test_learning_curves_show_every_epoch_and_mark_the_best(num_epochs: int) -> None:
    history = [{"train/loss": 1 / (e + 1), "val/loss": 2 / (e + 1), "lr": 1e-3} for e in range(num_epochs)]
    figure = learning_curves(history, num_epochs - 1, "val/accuracy")
    curves = {line.get_label(): line for line in figure.axes[0].lines}
    assert curves["training"].get_ydata() == pytest.approx([m["train/loss"] for m in history])
    assert curves["validation"].get_ydata() == pytest.approx([m["val/loss"] for m in history])
    best = curves[f"epoch {num_epochs - 1}, kept (val/accuracy)"]
    assert list(best.get_xdata()) == [num_epochs - 1] * 2
    drawn(figure)


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("lenet", "all 6 filters of stages.0.0, 5×5"),
        ("speed_cnn", "all 24 filters of whiten, 2×2"),
        ("resnet18", "all 64 filters of conv1, 3×3"),
    ],
)
def test_first_filters_are_those_that_see_the_colours(kind: ScratchKind, note: str) -> None:
    assert note in note_of(filters_figure(build_model(ScratchModel(kind=kind), 3)))


@pytest.mark.parametrize(
    ("config", "depths"),
    [
        (ScratchModel(kind="lenet"), ["28×28", "5×5"]),
        (TimmModel(name="vit_tiny_patch16_224", image_size=64), ["4×4"]),
        (TimmModel(name="test_convnext", image_size=64), ["16×16", "2×2"]),
    ],
    ids=["lenet", "vit", "convnext"],
)
def test_feature_maps_of_several_depths(config: ScratchModel | TimmModel, depths: list[str]) -> None:
    classifier = build_model(config, 3)
    figure = feature_maps_figure(classifier, noise(np.arange(1), classifier.image_size)[0], "val, cat")
    assert all(depth in note_of(figure) for depth in depths)
    assert_no_overlap(figure)
    drawn(figure)


def test_features_are_what_the_last_layer_receives() -> None:
    classifier = build_model(ScratchModel(kind="lenet"), 3).eval()
    features = penultimate_features(classifier, noise, np.arange(30))
    assert features.shape == (30, 84)
    images = torch.from_numpy(noise(np.arange(30))).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = classifier.network.get_submodule("head")(torch.from_numpy(features))
        assert torch.allclose(logits, classifier(images), atol=1e-5)


def test_groups_stay_apart_in_the_plane_and_twice_is_the_same() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(150, 32)) + np.repeat(12 * np.eye(3, 32), 50, axis=0)
    layout = lay_out(features)
    assert layout.method.startswith("t-SNE")
    centres = layout.points.reshape(3, 50, 2).mean(1)
    nearest = np.linalg.norm(layout.points[:, None] - centres, axis=2).argmin(1)
    assert (nearest == np.repeat(np.arange(3), 50)).mean() > 0.98
    assert np.array_equal(lay_out(features).points, layout.points)


@pytest.mark.parametrize("count", [2, 30])
def test_few_images_are_laid_out_by_principal_components(count: int) -> None:
    layout = lay_out(np.random.default_rng(0).normal(size=(count, 8)))
    assert layout.method == "principal components"
    assert layout.points.shape == (count, 2)
    assert np.isfinite(layout.points).all()


def test_equal_features_of_a_dead_network_are_laid_out_too() -> None:
    for count in (1, 150):
        layout = lay_out(np.ones((count, 8)))
        assert layout.method == "all features are equal"
        assert layout.points.shape == (count, 2)


def test_the_sample_is_capped_and_mostly_of_coloured_classes() -> None:
    labels = np.arange(5000) % 100
    chosen = sample(labels, np.arange(24), 1000)
    assert len(chosen) == len(set(chosen)) == 1000
    assert (labels[chosen] < 24).sum() == 750


@pytest.mark.parametrize("num_classes", [2, 10, 40])
def test_the_map_of_features_says_what_it_shows(num_classes: int) -> None:
    classifier = build_model(ScratchModel(kind="lenet"), num_classes)
    figure = embedding_figure(classifier, some_predictions(num_classes, 90), noise)
    note = note_of(figure)
    assert "90 of 90 val images" in note
    assert ("24 of 40 classes are coloured" in note) == (num_classes == 40)
    assert_no_overlap(figure)
    drawn(figure)


def test_a_picture_that_fails_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Figure:
        raise ValueError("no such layer")

    assert [name for name, _ in draw_all({"val/a": fails, "b": Figure})] == ["b"]
    assert "the picture val/a is left out: no such layer" in caplog.text
