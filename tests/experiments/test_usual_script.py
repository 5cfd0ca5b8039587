"""The script that the harness is measured against must be fair, and of public libraries only."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.performance import usual_script as usual
from harness.config.schema import EfficientNetLite0, ScratchModel
from harness.models import build_model


def test_it_knows_nothing_of_the_harness() -> None:
    tree = ast.parse(Path(usual.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported}.isdisjoint({"harness", "experiments", ""})


def _random_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 10


@pytest.mark.parametrize(("mode", "size"), [("linear_probe", 64), ("wide_cnn", 32)])
def test_images_come_normalised_at_the_networks_size(mode: usual.Mode, size: int) -> None:
    images, labels = _random_images(4)
    dataset = usual.ArrayImages(images, labels, usual.train_transform(mode))
    image, label = dataset[3]
    assert image.shape == (3, size, size)
    assert image.dtype == torch.float32
    assert label == 3
    assert image.min() < 0 < image.max()


def test_the_linear_probe_is_the_harness_s_network_with_the_same_weights() -> None:
    ours = build_model(EfficientNetLite0(image_size=64), 10).network.eval()
    theirs = usual.build_network("linear_probe").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(theirs.forward_features(images), ours.forward_features(images))  # type: ignore[operator]
    trained = {name for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}


def test_its_wide_cnn_is_the_harness_s() -> None:
    ours = build_model(ScratchModel(kind="wide_cnn"), 10).network
    theirs = usual.build_network("wide_cnn")
    shapes = [[p.shape for p in network.parameters()] for network in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_the_hubs_files_are_read(real_cifar10: Path) -> None:
    (file,) = (real_cifar10 / "cifar10" / "plain_text").glob("test*.parquet")
    images, labels = usual.read_parquet(file)
    assert images.shape == (10_000, 32, 32, 3)
    assert np.bincount(labels).tolist() == [1000] * 10
