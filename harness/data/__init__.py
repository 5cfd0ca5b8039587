"""Images: where they come from, how they are decoded, split, batched and augmented.

    load.py            read this first: from the data section of a configuration to splits
    splits.py          which images train and which validate; what identifies the split
    held_out.py        the only way to the test split, for `training/evaluate.py` and `summary.py` alone
    datamodule.py      batches of images for Lightning, the same after a resume
    sharding.py        what each rank takes of a batch

    sources/           CIFAR-10, digits, any tree of class folders (layout.py says what a tree means)
    decoding/          one image file to 8-bit RGB; images that stay in their files
    decoded_cache.py   decoded images on disk, memory-mapped by every process
    duplicates.py      equal images stay on one side of a split; similar ones are counted
    augment/           augmentation of whole batches; mixup and cutmix
    features/          cached activations of frozen backbones, and their batches

    summary.py         what `harness data` prints
    messages.py        printable names, and warnings said once in a process

`load_splits` gives what a run may see; the test split is not reachable from there.
"""

from harness.data.load import as_loaded, load_splits, remember_auto, resolve_auto
from harness.data.splits import ImageArrays, ImageSplits

__all__ = ["ImageArrays", "ImageSplits", "as_loaded", "load_splits", "remember_auto", "resolve_auto"]
