"""`BundleConfig`: the schema of a bundle's `config.json`, checked when it is written and when it is read.

:mod:`harness.export.bundle` writes it; :mod:`harness.export.predict` reads it, and needs neither torch nor
the training code for that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from harness.config.base import Section
from harness.config.schema import ModelConfig, PixelType
from harness.errors import ExportError

FORMAT: Literal["harness-bundle"] = "harness-bundle"
FORMAT_VERSION: Literal[2] = 2  # in version 1 the names of the weights began with ``network.``

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
CARD_FILE = "README.md"
SUMS_FILE = "SHA256SUMS"


class GraphInput(Section):
    """The input of `model.onnx`: raw pixels, in batches of any size."""

    name: str = "images"
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NCHW"] = "NCHW"
    channels: Literal["RGB"] = "RGB"
    value_range: tuple[int, int] = (0, 255)
    height: int  # pixels
    width: int  # pixels


class GraphOutput(Section):
    """The output of `model.onnx`: one logit per class, in the order of `classes`, without softmax."""

    name: str = "logits"
    dtype: Literal["float32"] = "float32"
    layout: Literal["NK"] = "NK"
    kind: Literal["logits"] = "logits"


class Preprocessing(Section):
    """How a file becomes the graph's input, and what the graph does with that input."""

    decode_size: int  # pixels: the side of the training images, to which the caller scales an image
    decode_rule: str  # how the caller does it, in words
    # Of images deeper than 8 bits: the values that become 0 and 255.
    pixel_range: dict[PixelType, tuple[float, float]] = Field(default_factory=dict)
    image_size: int  # pixels: the graph resizes its input to this square
    interpolation: str
    antialias: Literal[True] = True
    mean: tuple[float, float, float]  # subtracted by the graph, from pixels in [0, 1]
    std: tuple[float, float, float]  # by which the graph divides then


class DataFacts(Section):
    """Which images the model was trained and selected on."""

    name: str
    digest: str
    num_val_images: int


class RunFacts(Section):
    """What the run store knows of the exported run; the card omits what is None."""

    run_id: str | None = None
    sweep: str | None = None
    trial: int | None = None
    num_trials: int | None = None  # complete and pruned trials, from which this one was chosen
    is_best_of_sweep: bool = False
    test_readings: int | None = None  # how often the test split was read for the run, or for a trial's sweep
    # `val/…` and, if the run was evaluated on the test split, `test/…`.
    metrics: dict[str, float] = Field(default_factory=dict)


class ParityFacts(Section):
    """How closely ONNX Runtime and torch agreed when the bundle was written."""

    num_images: int  # real validation images
    batch_sizes: tuple[int, ...]
    max_abs_difference: float  # of logits
    tolerance: float  # on that difference
    top1_agreement: float  # fraction of images; multi-label: of those whose labels are all the same


class Int8Facts(Section):
    """What `model.int8.onnx` loses, measured by ONNX Runtime when the bundle was written."""

    num_calibration_images: int  # training images, from which the ranges of activations come
    num_images: int  # validation images
    accuracy: float  # of model.int8.onnx on them
    fp32_accuracy: float  # of model.onnx on them
    top1_agreement: float  # fraction of them to which both give the same class
    max_loss: float  # of accuracy, that was allowed

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.2%} (fp32: {self.fp32_accuracy:.2%}) and the same class for "
            f"{self.top1_agreement:.2%} of {self.num_images:,} images"
        )


class BundleConfig(Section):
    """The whole of `config.json`."""

    format: Literal["harness-bundle"] = FORMAT
    format_version: Literal[1, 2] = FORMAT_VERSION
    name: str
    classes: tuple[str, ...]
    # Of a multi-label model: the probability (of the sigmoid) above which an image has each of `classes`.
    thresholds: tuple[float, ...] | None = None
    input: GraphInput
    output: GraphOutput = GraphOutput()
    preprocessing: Preprocessing
    model: ModelConfig
    num_parameters: int
    data: DataFacts
    epoch: int  # of the checkpoint, counted from 0
    score: float | None  # by training.trainer.monitor, of that epoch; None: trained without validation images
    run: RunFacts
    parity: ParityFacts
    int8: Int8Facts | None = None  # of model.int8.onnx, where there is one
    training: dict[str, Any]  # the run's whole configuration, as it was resolved
    versions: dict[str, str]
    # The keys that `timm.create_model("local-dir:<folder>", pretrained=True)` reads; None for our own
    # networks.
    architecture: str | None = None
    num_classes: int | None = None
    label_names: tuple[str, ...] | None = None
    model_args: dict[str, Any] = Field(default_factory=dict)
    pretrained_cfg: dict[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Write `config.json` into `folder`."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def read_config(folder: Path) -> BundleConfig:
    """Return the checked `config.json` of a bundle.

    Raises:
        ExportError: it is no JSON, or of another format or version.
    """
    try:
        return BundleConfig.model_validate_json((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError, ValidationError) as error:
        fault = str(error).splitlines()
        where = f" ({fault[1].strip()})" if isinstance(error, ValidationError) and len(fault) > 1 else ""
        raise ExportError(
            f"{folder / CONFIG_FILE} is no configuration of a {FORMAT} version {FORMAT_VERSION}{where}: "
            "export it again"
        ) from None
