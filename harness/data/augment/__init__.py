"""Augmentation of whole batches on any device, with independent random numbers for every image.

    transforms.py    read this first: `BatchAugment`, the whole section `augment` except mixup and cutmix
    auto_augment.py  TrivialAugment and RandAugment
    augmix.py        AugMix, whose chains are made of the same operations
    ops.py           the operations of these policies: geometry and colour, with a magnitude per image
    colour.py        colour arithmetic with a factor per image
    blur.py          Gaussian blur and noise, with a strength per image
    mixing.py        mixup and cutmix, applied last, to images and labels

Where several ranks train together, each draws the random numbers for the whole batch and uses those of its
own part of it (`harness.data.sharding`).
"""
