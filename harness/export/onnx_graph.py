"""From an ImageClassifier to one self-contained ONNX file that takes raw uint8 pixels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from harness.errors import ExportError, type_and_first_line
from harness.export.manifest import GraphInput, GraphOutput


def export_onnx(classifier: nn.Module, path: Path, graph_input: GraphInput) -> None:
    """Write the classifier, its resizing and normalisation included, for batches of any size.

    The image size is fixed: it is the one that the model was trained and measured with, and the crop that
    `Preprocess` derives from other sizes cannot be traced by torch.export.

    Args:
        classifier: on the CPU; put into evaluation mode here, since torch exports training mode silently.

    Raises:
        ExportError: torch cannot express this model in ONNX.
    """
    classifier.eval()
    # Two images, since torch.export would take a batch of one for a constant.
    example = torch.zeros(2, 3, graph_input.height, graph_input.width, dtype=torch.uint8)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                classifier,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[graph_input.name],
                output_names=[GraphOutput().name],
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=False)
    except Exception as error:  # whatever torch.export meets in a model of timm's hundreds
        raise ExportError(
            f"this model cannot be exported to ONNX ({_cause(error)}): choose another"
        ) from error


def _cause(error: BaseException) -> str:
    """Return the root cause in one line; the outer messages are the exporter's advice to programmers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return type_and_first_line(error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about its own internals: a failure still raises."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
