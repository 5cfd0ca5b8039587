"""Augmentation of whole batches on any device, with an independent draw for every image.

    transforms.py    read this first: `BatchAugment`, all that the section `augment` switches on but mixing
    auto_augment.py  TrivialAugment and RandAugment, made of ops.py
    ops.py           their operations: geometry and colour, each with a magnitude per image
    colour.py        colour arithmetic with a factor per image
    mixing.py        mixup and cutmix, applied last, to images and labels

Parallel ranks draw for the whole batch and apply the draws of their own shard (`harness.data.sharding`).
"""
