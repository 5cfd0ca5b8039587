"""Loads the test split, for `training/evaluate.py` and `data/summary.py` alone; `search` never imports it.

It also tells which images of a folder are the run's own.
"""

from __future__ import annotations

import numpy as np

from harness.config.schema import DataConfig
from harness.data.duplicates import keys_of
from harness.data.load import held_out_fraction, load_decoded, load_splits, resolve_auto
from harness.data.splits import ImageArrays, build_test


def load_test(config: DataConfig) -> ImageArrays:
    """Load the held-out images, which depend on nothing that a search may vary."""
    named = resolve_auto(config)
    return build_test(load_decoded(named), held_out_fraction(named))


def count_known(config: DataConfig, hashes_N32: np.ndarray) -> dict[str, int]:
    """Return how many images have the pixels of a training, a validation and a test image of a run.

    Args:
        config: the run's section `data`.
        hashes_N32: uint8, the sha256 of each image's pixels.

    Raises:
        HarnessError: the run's data cannot be loaded.
    """
    splits = load_splits(config)
    sides = {"training": splits.train.side, "validation": splits.val.side, "test": load_test(config).side}
    keys = keys_of(hashes_N32)
    return {
        name: int(np.isin(keys, keys_of(part.hashes[rows])).sum()) for name, (part, rows) in sides.items()
    }
