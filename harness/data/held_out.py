"""Loads the test split, for `training/evaluate.py` and `data/summary.py` alone; `search` never imports it."""

from __future__ import annotations

from harness.config.schema import DataConfig
from harness.data.load import held_out_fraction, load_decoded, resolve_auto
from harness.data.splits import ImageArrays, build_test


def load_test(config: DataConfig) -> ImageArrays:
    """Load the held-out images, which depend on nothing that a search may vary."""
    named = resolve_auto(config)
    return build_test(load_decoded(named), held_out_fraction(named))
