"""Exports an ImageClassifier as one self-contained ONNX file that takes raw uint8 pixels."""

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
    """Write the classifier with its resizing and normalisation, for batches of any size.

    The image size is fixed to the one of training: torch.export cannot trace the crop that `Preprocess`
    derives from the size of its input.

    Args:
        classifier: on the CPU; it is put into evaluation mode, since torch exports training mode silently.
        path: of the ONNX file.
        graph_input: the name of the input, and its height and width.

    Raises:
        ExportError: torch cannot express this model in ONNX.
    """
    classifier.eval()
    # Two images: from a batch of one, torch.export would conclude that the batch size is the constant 1.
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
    except Exception as error:  # of any class: timm has hundreds of models, torch.export many errors
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
    """Silence the exporter's messages about its internals; a failure still raises."""
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
