"""Image classifiers: from-scratch CNNs, timm backbones, and which of their parameters train."""

from __future__ import annotations

from harness.models.classifier import ImageClassifier, build_model
from harness.models.freezing import FreezeReport, apply_freezing

__all__ = ["FreezeReport", "ImageClassifier", "apply_freezing", "build_model"]
