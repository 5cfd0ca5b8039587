"""Image classifiers, and which of their parameters train. The only package that imports timm.

- `classifier.py` (read first): the classifier that all other packages handle, and `build_model`.
- Networks: `backbones.py` builds timm's, `scratch.py` and `speed.py` our own; `protocol.py` says what each
offers.
- Weights: `pretrained.py` finds and loads them, `weight_files.py` reads files of any origin, `head.py` sets a
new
  head to zero.
- Finetuning: `freezing.py` applies a policy, `trunk.py` finds where the frozen part of a network ends.
- Layers: `preprocess.py` (resize and normalise), `convolutions.py` (fast on CPUs), `sync_norm.py` (batch norm
  over ranks).
"""

from __future__ import annotations

from harness.models.classifier import ImageClassifier, build_model
from harness.models.freezing import FreezeReport, apply_freezing

__all__ = ["FreezeReport", "ImageClassifier", "apply_freezing", "build_model"]
