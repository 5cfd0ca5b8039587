"""`Runner`: a function from uint8 images to logits, both numpy arrays, made of a torch or an ONNX model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.export.manifest import GraphInput

if TYPE_CHECKING:
    from torch import nn

Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # images (B, 3, H, W) -> logits (B, K)


def torch_runner(classifier: nn.Module) -> Runner:
    """Run a classifier that lies on the CPU, in evaluation mode."""
    import torch

    classifier.eval()

    def run(images_BCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = classifier(torch.from_numpy(images_BCHW)).float().numpy()
        return logits

    return run


def onnx_runner(path: Path, graph_input: GraphInput) -> Runner:
    """Run an ONNX file on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images_BCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(None, {graph_input.name: images_BCHW})[0]
        return logits

    return run
