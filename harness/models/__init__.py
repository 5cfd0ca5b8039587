"""Image classifiers, and which of their parameters train. The only package that imports timm.

    classifier.py      read this first: the classifier that all other packages handle, and `build_model`
    backbones.py       builds timm's networks
    scratch.py         networks defined here; speed.py holds the one of the CIFAR-10 speed record
    protocol.py        the methods that every network has
    pretrained.py      finds and loads weights
    published.py       published networks with their own heads
    weight_files.py    reads files of weights of any origin
    head.py            sets a new head to zero
    freezing.py        applies a finetuning policy
    trunk.py           finds where the frozen part of a network ends
    preprocess.py      resizes and normalises
    convolutions.py    faster convolutions on CPUs
    sync_norm.py       batch norm over the batches of all ranks

To add a finetuning policy, write a class in `harness/config/finetune.py` and a file in `configs/finetune/`.
"""

from __future__ import annotations

from harness.models.classifier import ImageClassifier, build_model
from harness.models.freezing import FreezeReport, apply_freezing

__all__ = ["FreezeReport", "ImageClassifier", "apply_freezing", "build_model"]
