"""Images: where they come from, how they are split, batched and augmented.

`load_splits` gives what a run may see; the test split is in `harness.data.held_out` alone.
"""

from harness.data.load import as_loaded, load_splits, remember_auto, resolve_auto
from harness.data.splits import ImageArrays, ImageSplits

__all__ = ["ImageArrays", "ImageSplits", "as_loaded", "load_splits", "remember_auto", "resolve_auto"]
