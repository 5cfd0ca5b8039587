"""The measures of `experiments.look_alikes` on images whose likeness is known."""

from __future__ import annotations

import imagehash
import numpy as np
import pytest
from PIL import Image

from experiments.look_alikes.__main__ import bits, nearest, thumbnails


def test_a_copy_is_nearest_and_bits_are_counted() -> None:
    rng = np.random.default_rng(0)
    known = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    brighter = np.clip(known[7:8].astype(int) + 3, 0, 255).astype(np.uint8)
    best, at = nearest(thumbnails(brighter), thumbnails(known))
    assert at.tolist() == [7]
    assert best[0] == pytest.approx(1.0, abs=1e-3)

    others = bits(imagehash.phash, known)
    best, at = nearest(bits(imagehash.phash, brighter), others)
    apart = imagehash.phash(Image.fromarray(brighter[0])) - imagehash.phash(Image.fromarray(known[7]))
    assert at.tolist() == [7]
    assert best[0] == pytest.approx(1 - apart / 32)
