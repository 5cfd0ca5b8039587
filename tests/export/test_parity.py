from __future__ import annotations

import numpy as np
import pytest

from harness.data.splits import ImageArrays
from harness.errors import ExportError
from harness.export.parity import check_identical, check_parity, choose_images
from tests.export.conftest import make_images

IMAGES = choose_images(make_images(40))
LOGITS = np.random.default_rng(0).normal(size=(3 * 32 * 32, 10)).astype(np.float32) / 255


def reference(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) @ LOGITS


def test_images_are_spread_over_the_split_in_its_own_order() -> None:
    pixels = np.broadcast_to(np.arange(250, dtype=np.uint8)[:, None, None, None], (250, 2, 2, 3))
    reversed_split = ImageArrays(pixels, np.zeros(250, np.int64), np.arange(250)[::-1])
    chosen = choose_images(reversed_split)
    assert chosen.shape == (250, 3, 2, 2)
    assert chosen[:, 0, 0, 0].tolist() == list(range(250))[::-1]
    assert len(choose_images(make_images(1000))) == 256


def test_channels_come_first() -> None:
    split = make_images(3)
    assert np.array_equal(choose_images(split)[1, 2], split.images[1, :, :, 2])


def test_rounding_passes_and_is_reported() -> None:
    facts = check_parity(reference, lambda images: reference(images) + np.float32(3e-5), IMAGES)
    assert facts.num_images == 40
    assert facts.max_abs_difference == pytest.approx(3e-5, rel=0.1)
    assert facts.batch_sizes == (1, 2, 7, 30)


def test_every_image_counts() -> None:
    def wrong_in_one_batch_size(images: np.ndarray) -> np.ndarray:
        return reference(images) + (0.1 if len(images) == 1 else 0.0)

    with pytest.raises(ExportError, match=r"differ by up to 0\.1 "):
        check_parity(reference, wrong_in_one_batch_size, IMAGES)


@pytest.mark.parametrize("both", [True, False])
def test_nan_never_passes(both: bool) -> None:
    def broken(images: np.ndarray) -> np.ndarray:
        return np.full_like(reference(images), np.nan)

    with pytest.raises(ExportError, match="nan"):
        check_parity(broken if both else reference, broken, IMAGES)


def test_another_number_of_classes_fails() -> None:
    with pytest.raises(ExportError, match="shape"):
        check_parity(reference, lambda images: reference(images)[:, :1], IMAGES)


def test_identical_means_every_bit() -> None:
    check_identical(reference, reference, IMAGES)
    with pytest.raises(ExportError, match="reloaded"):
        check_identical(reference, lambda images: np.nextafter(reference(images), np.float32(np.inf)), IMAGES)
