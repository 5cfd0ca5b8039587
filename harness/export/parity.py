"""Checks that the exported files give the trained model's logits, on real validation images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from harness.data.splits import ImageArrays
from harness.errors import ExportError
from harness.export.manifest import ParityFacts
from harness.export.runners import Runner

NUM_IMAGES = 256
BATCH_SIZES = (1, 2, 7, 32, 64)  # one after the other, repeated until every image was used
RELATIVE_TOLERANCE = 1e-4  # of the largest logit: rounding causes far less, a wrong graph far more


def choose_images(split: ImageArrays) -> NDArray[np.uint8]:
    """Return up to 256 images, evenly spaced over the split, as the graph's input: uint8 (M, 3, H, W)."""
    chosen = np.linspace(0, len(split) - 1, min(len(split), NUM_IMAGES)).astype(np.int64)
    return np.ascontiguousarray(split.gather(chosen).transpose(0, 3, 1, 2))


def check_parity(
    reference: Runner,
    exported: Runner,
    images_NCHW: NDArray[np.uint8],
    thresholds: Sequence[float] | None = None,
) -> ParityFacts:
    """Compare the logits of every image, in batches of several sizes.

    Args:
        images_NCHW: uint8, (N, 3, H, W).
        thresholds: of a multi-label model's labels; the agreement is then of all labels of an image.

    Raises:
        ExportError: the logits differ by more than the tolerance, or are not finite.
    """
    batches = list(_batches(images_NCHW))
    expected_NK = np.concatenate([reference(batch) for batch in batches])
    actual_NK = np.concatenate([exported(batch) for batch in batches])
    if expected_NK.shape != actual_NK.shape:
        raise ExportError(
            f"ONNX gives logits of shape {actual_NK.shape}, torch {expected_NK.shape}: nothing was exported"
        )
    difference = float(np.abs(expected_NK - actual_NK).max())
    tolerance = RELATIVE_TOLERANCE * max(1.0, float(np.abs(expected_NK).max()))
    if thresholds is None:
        agreement = float((expected_NK.argmax(1) == actual_NK.argmax(1)).mean())
    else:
        has_label = [
            expit(logits_NK.astype(np.float64)) > thresholds for logits_NK in (expected_NK, actual_NK)
        ]
        agreement = float((has_label[0] == has_label[1]).all(axis=1).mean())
    if not difference <= tolerance:  # not `difference > tolerance`, which NaN would pass
        raise ExportError(
            f"torch and ONNX Runtime disagree on {len(expected_NK)} validation images: logits differ by up to"
            f" {difference:.3g} (allowed {tolerance:.3g}), top-1 agreement {agreement:.2%}; "
            "nothing was exported: use the checkpoint with torch"
        )
    return ParityFacts(
        num_images=len(expected_NK),
        batch_sizes=tuple(sorted({len(batch) for batch in batches})),
        max_abs_difference=difference,
        tolerance=tolerance,
        top1_agreement=agreement,
    )


def check_identical(reference: Runner, reloaded: Runner, images_NCHW: NDArray[np.uint8]) -> None:
    """Check that the weights, written and read again, give the same logits, bit for bit.

    Raises:
        ExportError: any logit differs.
    """
    if not all(np.array_equal(reference(batch), reloaded(batch)) for batch in _batches(images_NCHW)):
        raise ExportError(
            "the reloaded safetensors file gives other logits than the checkpoint: nothing was exported"
        )


def _batches(images_NCHW: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    start = turn = 0
    while start < len(images_NCHW):
        size = BATCH_SIZES[turn % len(BATCH_SIZES)]
        yield images_NCHW[start : start + size]
        start, turn = start + size, turn + 1
