"""Loads a recorded checkpoint for MLflow and scores images with it: the `loader_module` of a model.

Each recorded model names this module (`logged_model.py`), and MLflow imports it from the copy of the package
inside the model. So neither its name nor its path may change. It needs `harness.training`, a layer above this
package, which `harness.tracking` may not import; so it is imported by name, when a model is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

CHECKPOINT_MODULE = "harness.training.checkpoints.checkpoint"
BATCH_SIZE = 256


class Scorer:
    """A classifier with the method `predict` that MLflow calls."""

    def __init__(self, classifier: torch.nn.Module, *, is_multilabel: bool = False) -> None:
        self.classifier = classifier
        self.is_multilabel = is_multilabel

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return the probability of each class, or of each label.

        Args:
            images: uint8, (N, H, W, 3).

        Returns:
            float32, (N, K).
        """
        import torch

        images_BCHW = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            logits = [self.classifier(batch) for batch in torch.split(images_BCHW, BATCH_SIZE)]
            logits_NK = torch.cat(logits).float()
            probabilities_NK = logits_NK.sigmoid() if self.is_multilabel else logits_NK.softmax(dim=1)
        scores: np.ndarray = probabilities_NK.numpy()
        return scores


def _load_pyfunc(data_path: str) -> Scorer:
    checkpoints = importlib.import_module(CHECKPOINT_MODULE)
    checkpoint = checkpoints.load_checkpoint(data_path)
    classifier = checkpoints.restore_classifier(checkpoint)
    return Scorer(classifier, is_multilabel=checkpoint.config.is_multilabel)
