"""`predict_files`: classifies image files with a bundle alone, by ONNX Runtime, numpy and Pillow.

`harness predict` and `harness.api` call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data.decoding.decode import decode_image
from harness.data.decoding.pixels import PixelRange
from harness.data.messages import printable
from harness.data.sources.layout import describe_passed_over
from harness.data.sources.scan import PassedOver, scan
from harness.errors import DataError, ExportError, first_line
from harness.export.checksums import verify_checksums
from harness.export.manifest import CONFIG_FILE, INT8_FILE, ONNX_FILE, WEIGHTS_FILE, BundleConfig, read_config
from harness.export.runners import Runner, onnx_runner

BATCH_SIZE = 32


@dataclass(frozen=True)
class Bundle:
    """An exported model whose files are known to be unaltered."""

    path: Path
    config: BundleConfig


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of a file, or its labels above their thresholds, or why it could not be read."""

    file: Path
    classes: tuple[tuple[str, float], ...] = ()  # (name, probability), likeliest first
    error: str | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f"not read: {self.error}"
        if not self.classes:
            return "no label above its threshold"
        return "   ".join(f"{name} {probability:.1%}" for name, probability in self.classes)


class Predictions(list[Prediction]):
    """One prediction per file, in the order of the files; prints as a table."""

    passed_over: tuple[PassedOver, ...] = ()  # files in the given folders that are no images

    @property
    def failed(self) -> bool:
        """Whether any file could not be read."""
        return any(prediction.error is not None for prediction in self)

    def __str__(self) -> str:
        names = [printable(str(prediction.file)) for prediction in self]
        width = max(map(len, names), default=0)
        lines = [f"{name:<{width}}  {prediction}" for name, prediction in zip(names, self, strict=True)]
        unused = [f"not used: {describe_passed_over(self.passed_over)}"] if self.passed_over else []
        return "\n".join([*lines, *unused])


def load_bundle(bundle_dir: str | Path) -> Bundle:
    """Return a bundle whose files match its checksums.

    Raises:
        ExportError: the folder is no bundle, or a file of it is missing or altered.
    """
    folder = Path(bundle_dir)
    verify_checksums(folder, required=(CONFIG_FILE, ONNX_FILE, WEIGHTS_FILE))
    return Bundle(folder, read_config(folder))


def predict_files(
    bundle_dir: str | Path, files: Sequence[str | Path], *, top_k: int = 3, int8: bool = False
) -> Predictions:
    """Classify image files of any mode and size; the prediction of an unreadable file holds its error.

    Args:
        files: image files, and folders, which stand for the images in them and below.
        top_k: how many classes each prediction names; that of a multi-label model names all of its labels.
        int8: by `model.int8.onnx`.

    Returns:
        One prediction per file, in their order.

    Raises:
        ExportError: the bundle is missing or damaged, it has no quantised model, or `top_k` is not positive.
        DataError: a folder cannot be read or holds no image.
    """
    if top_k < 1:
        raise ExportError(f"top_k={top_k}: ask for at least one class")
    bundle = load_bundle(bundle_dir)
    if int8 and bundle.config.int8 is None:
        raise ExportError(f"{bundle.path} has no {INT8_FILE}: export it with --int8")
    score = onnx_runner(bundle.path / (INT8_FILE if int8 else ONNX_FILE), bundle.config.input)
    predictions = Predictions()
    paths = []
    for file in map(Path, files):
        inside, passed_over = _images_below(file) if file.is_dir() else ([file], ())
        paths += inside
        predictions.passed_over += passed_over
    for start in range(0, len(paths), BATCH_SIZE):
        predictions.extend(_predict_batch(bundle.config, score, paths[start : start + BATCH_SIZE], top_k))
    return predictions


def _images_below(folder: Path) -> tuple[list[Path], tuple[PassedOver, ...]]:
    top, passed_over = scan(folder)
    found = [folder / path for path in top.all_images()]
    here = tuple(PassedOver(str(folder / one.path), one.why) for one in passed_over)
    if not found:
        seen = f"; seen: {describe_passed_over(here)}" if here else ""
        raise DataError(f"there are no images in {printable(str(folder))}{seen}")
    return found, here


def _predict_batch(config: BundleConfig, score: Runner, paths: list[Path], top_k: int) -> list[Prediction]:
    inside = config.preprocessing
    decoded = [_decode(path, inside.decode_size, inside.pixel_range) for path in paths]
    images = [image for image in decoded if not isinstance(image, str)]
    logits = (
        score(np.stack(images).transpose(0, 3, 1, 2).copy())
        if images
        else np.empty((0, len(config.classes)), np.float32)
    )
    thresholds = config.thresholds
    probabilities = iter(_softmax(logits) if thresholds is None else _sigmoid(logits))
    return [
        Prediction(path, error=image)
        if isinstance(image, str)
        else Prediction(path, _named(config.classes, next(probabilities), top_k, thresholds))
        for path, image in zip(paths, decoded, strict=True)
    ]


def _decode(path: Path, size: int, pixel_range: PixelRange) -> NDArray[np.uint8] | str:
    try:
        return decode_image(path, size, pixel_range)
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # of any class: Pillow's decoders raise many at a damaged file
        return first_line(error)


def _named(
    classes: Sequence[str],
    probabilities_K: NDArray[np.float64],
    top_k: int,
    thresholds: Sequence[float] | None,
) -> tuple[tuple[str, float], ...]:
    """Return the `top_k` likeliest classes; of a multi-label model, the labels above their thresholds."""
    order = np.argsort(-probabilities_K, kind="stable")
    order = order[:top_k] if thresholds is None else order[(probabilities_K > thresholds)[order]]
    return tuple((classes[index], float(probabilities_K[index])) for index in order)


def _sigmoid(logits_NK: NDArray[np.float32]) -> NDArray[np.float64]:
    # Of the magnitude alone an exponential is taken, so that none overflows.
    small = np.exp(-np.abs(logits_NK.astype(np.float64)))
    probabilities: NDArray[np.float64] = np.where(logits_NK >= 0, 1.0, small) / (1.0 + small)
    return probabilities


def _softmax(logits_NK: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = np.exp(logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
