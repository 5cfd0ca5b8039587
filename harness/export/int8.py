"""Writes `model.int8.onnx`, the ONNX graph with 8-bit weights and activations, and measures what it loses.

`bundle.py` calls both functions if a quantised model is asked for. The file has about three tenths of the
size; whether it is faster depends on the processor and the network (experiments/studies/compression).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data.splits import ImageArrays
from harness.errors import ExportError, type_and_first_line
from harness.export.manifest import GraphInput, Int8Facts
from harness.export.runners import Runner

NUM_CALIBRATION_IMAGES = 256
BATCH_SIZE = 32


def write_int8(onnx_file: Path, path: Path, graph_input: GraphInput, train: ImageArrays) -> int:
    """Quantise an ONNX graph statically; return of how many training images the ranges are.

    Weights are quantised per channel to 7 bits of the 8, since processors without VNNI add the products of
    8-bit weights in 16 bits, which can overflow: the same file would give other answers there. Activations
    have 8 bits and the range that they take on the calibration images.

    Raises:
        ExportError: ONNX Runtime cannot quantise this graph.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    chosen = np.linspace(0, len(train) - 1, min(len(train), NUM_CALIBRATION_IMAGES)).astype(np.int64)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # ONNX Runtime gives advice to programmers there
    try:
        with tempfile.TemporaryDirectory(prefix="int8-") as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(onnx_file, prepared)
            quantize_static(
                prepared,
                path,
                _Batches(train, chosen, graph_input.name),
                quant_format=QuantFormat.QDQ,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
                per_channel=True,
                reduce_range=True,
            )
    except Exception as error:  # of any class: it has many, most of them plain Exceptions
        why = type_and_first_line(error)
        raise ExportError(f"ONNX Runtime cannot quantise this model ({why}): leave --int8 out") from error
    finally:
        root.setLevel(level)
    return len(chosen)


class _Batches:
    """The calibration images, as ONNX Runtime's `CalibrationDataReader` gives them."""

    def __init__(self, images: ImageArrays, chosen: NDArray[np.int64], name: str) -> None:
        self.batches = _batches(images, chosen)
        self.name = name

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


def measure_loss(
    fp32: Runner, int8: Runner, val: ImageArrays, *, num_calibration_images: int, max_loss: float
) -> Int8Facts:
    """Compare the quantised model with the original on all validation images.

    Raises:
        ExportError: it loses more accuracy than is allowed.
    """
    everything = np.arange(len(val))
    expected_N, actual_N = (
        np.concatenate([run(batch).argmax(axis=1) for batch in _batches(val, everything)])
        for run in (fp32, int8)
    )
    facts = Int8Facts(
        num_calibration_images=num_calibration_images,
        num_images=len(val),
        accuracy=float((actual_N == val.labels).mean()),
        fp32_accuracy=float((expected_N == val.labels).mean()),
        top1_agreement=float((actual_N == expected_N).mean()),
        max_loss=max_loss,
    )
    loss = facts.fp32_accuracy - facts.accuracy
    if loss > max_loss:
        raise ExportError(
            f"the quantised model is right on {facts.accuracy:.2%} of {facts.num_images} validation images, "
            f"the original on {facts.fp32_accuracy:.2%}: more than {max_loss:.2%} are lost, nothing was "
            f"exported; leave --int8 out, or allow more: --int8 {loss + 0.001:.3f}"
        )
    return facts


def _batches(images: ImageArrays, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """Yield some images in batches as the graph's input, uint8 (B, 3, H, W)."""
    for start in range(0, len(chosen), BATCH_SIZE):
        pixels_BHWC = images.gather(chosen[start : start + BATCH_SIZE])
        yield np.ascontiguousarray(pixels_BHWC.transpose(0, 3, 1, 2))
