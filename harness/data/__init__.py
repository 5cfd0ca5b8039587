"""Images: where they come from, how they are decoded, split, batched and augmented.

    load.py            read this first: loads the splits that the section `data` describes
    splits.py          training, validation and test images, and a digest that identifies the splits
    subsets.py         few-shot and long-tailed subsets of the training images; wrong labels
    folds.py           the folds of cross-validation
    epochs.py          which images each epoch visits, over- and under-sampling included
    held_out.py        the only way to the test split, for `training/evaluate.py` and `summary.py` alone
    datamodule.py      batches of images for Lightning, the same after a resume
    sharding.py        divides a batch among the ranks

    sources/           CIFAR-10, digits, any tree of class folders (layout.py interprets a tree), images with
                       several labels each (labels_csv.py reads them)
    decoding/          image files to 8-bit RGB, once or anew in every epoch
    decoded_cache.py   decoded images on disk, memory-mapped by every process
    duplicates.py      equal images stay on one side of a split; similar ones are counted
    augment/           augmentation of whole batches; mixup and cutmix
    features/          cached activations of frozen backbones, and their batches

    summary.py         what `harness data` prints
    messages.py        printable names, and warnings that a process logs only once

`load_splits` returns the images that a run may see: training and validation, without the test split.
"""

from harness.data.load import as_loaded, load_splits, remember_auto, resolve_auto
from harness.data.splits import ImageArrays, ImageSplits

__all__ = ["ImageArrays", "ImageSplits", "as_loaded", "load_splits", "remember_auto", "resolve_auto"]
