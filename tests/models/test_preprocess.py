"""Preprocessing against Pillow, and against itself in another order."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from harness.models.preprocess import Preprocess

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def identity(image_size: int, interpolation: str = "bilinear") -> Preprocess:
    return Preprocess(image_size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation)


def random_images(height: int, width: int, num_images: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (num_images, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [32, 150])
def test_resizes_like_pillow(interpolation: str, side: int) -> None:
    images = random_images(side, side, 1)
    ours = identity(64, interpolation)(images)[0, 0].numpy()
    plane = Image.fromarray(images[0, 0].numpy().astype(np.float32))  # float: Pillow neither rounds nor clips
    pillow = np.asarray(plane.resize((64, 64), PILLOW[interpolation])) / 255
    np.testing.assert_allclose(ours, pillow, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (100, 100), (40, 60), (200, 90)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_normalising_before_or_after_resizing_is_the_same(
    height: int, width: int, interpolation: str
) -> None:
    images = random_images(height, width)
    resized = identity(64, interpolation)(images)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(Preprocess(64, MEAN, STD, interpolation)(images), (resized - mean) / std)


def test_float_in_0_to_1_is_treated_as_uint8_is() -> None:
    images = random_images(20, 20)
    preprocess = Preprocess(32, MEAN, STD)
    torch.testing.assert_close(preprocess(images), preprocess(images.double() / 255))
    assert preprocess(images.double() / 255).dtype == torch.float32


def test_the_right_size_is_left_alone() -> None:
    images = random_images(32, 32)
    torch.testing.assert_close(identity(32)(images), images.float() / 255, atol=1e-6, rtol=0)


def test_a_wide_image_is_scaled_by_its_shorter_side_and_cropped_in_the_centre() -> None:
    images = torch.zeros(1, 3, 32, 96, dtype=torch.uint8)
    images[..., 32:64] = 255  # the middle third is white, and is all that remains
    assert torch.equal(identity(32)(images), torch.ones(1, 3, 32, 32))
    assert identity(64)(random_images(31, 77)).shape == (2, 3, 64, 64)
    assert identity(16)(random_images(77, 31)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_the_memory_format_is_kept(side: int) -> None:
    images = random_images(side, side)
    preprocess = Preprocess(32, MEAN, STD)
    assert preprocess(images).is_contiguous()
    channels_last = preprocess(images.contiguous(memory_format=torch.channels_last))
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last, preprocess(images))


def test_it_adds_nothing_to_a_state_dict() -> None:
    assert Preprocess(32, MEAN, STD).state_dict() == {}


def test_torch_export_takes_any_batch_size() -> None:
    preprocess = Preprocess(48, MEAN, STD, "bicubic").eval()
    program = torch.export.export(
        preprocess, (random_images(32, 32),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    images = random_images(32, 32, 7)
    torch.testing.assert_close(program.module()(images), preprocess(images))


def test_onnx_runtime_computes_the_same() -> None:
    preprocess = Preprocess(24, MEAN, STD, "bicubic").eval()
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        preprocess, (random_images(40, 32),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    images = random_images(40, 32, 5)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), preprocess(images), atol=1e-5, rtol=1e-5)
