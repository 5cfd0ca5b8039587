"""`Predictions`: what a model answered to each image of a split, and its file, `predictions/<split>.npz`.

`harness.training.evaluate` makes and records them for every run; `load_predictions` in
`harness.tracking.artifacts` reads those of a recorded run. Metrics, figures and paired comparisons start
from them.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from harness.errors import DivergedError, TrackingError, first_line

VERSION = 1
KIND_OF_LABELS = "multilabel"  # in the file of multi-label predictions (`multilabel.py`)
MOST_CLASSES_IN_FLOAT32 = (
    100  # with more, logits are kept in float16: 5,000 images of 1,000 classes are 10 MB
)
DAMAGED = (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Predictions:
    """A model's answers to the images of one split, image by image.

    Two of them answer the same images in the same order exactly if their `digest` is the same.

    Args:
        split: "val", "test", or the name of a folder that was evaluated.
        digest: sha256 (hex) of the split's pixels and labels, in their order; empty where it is unknown.
        index: int64 (N,), the row of each image among the images of its source (`ImageArrays.indices`).
        labels: int64 (N,), the true classes.
        predicted: int64 (N,), the classes of the highest logit; of equal logits, the lowest class.
        logits: float32 (N, K). Where there are more than 100 classes, the file holds the logits less the
            image's highest one, rounded to float16: their softmax is the model's to about three digits.
        loss: float32 (N,), the cross-entropy (natural logarithm), computed from the logits as they were.
        logits_dtype: the type in which the file holds the logits: float32, or float16.
    """

    split: str
    class_names: tuple[str, ...]
    digest: str
    index: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    logits: np.ndarray
    loss: np.ndarray
    logits_dtype: str = "float32"

    def __post_init__(self) -> None:
        count, num_classes = len(self.labels), len(self.class_names)
        if self.logits.shape != (count, num_classes):
            raise ValueError(f"logits are {self.logits.shape} for {count} images and {num_classes} classes")
        for name in ("index", "labels", "predicted", "loss"):
            if (shape := getattr(self, name).shape) != (count,):
                raise ValueError(f"{name} is {shape}, not ({count},)")
        for name in ("labels", "predicted"):
            classes = getattr(self, name)
            if count and not 0 <= classes.min() <= classes.max() < num_classes:
                raise ValueError(f"{name} are outside of the {num_classes} classes")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> np.ndarray:
        """Whether each image was predicted right: bool (N,)."""
        return np.asarray(self.predicted == self.labels)

    @property
    def class_accuracies(self) -> np.ndarray:
        """The accuracy in each class: float64 (K,), NaN for a class without images."""
        of_class = np.bincount(self.labels, minlength=len(self.class_names))
        right = np.bincount(self.labels[self.correct], minlength=len(self.class_names))
        return np.divide(right, of_class, out=np.full(len(of_class), np.nan), where=of_class > 0)

    @property
    def log_probabilities(self) -> np.ndarray:
        """The logarithms of the probabilities: float64 (N, K)."""
        return np.asarray(log_softmax(self.logits.astype(np.float64), axis=1))

    @property
    def probabilities(self) -> np.ndarray:
        """The probability of each class: float64 (N, K)."""
        return np.exp(self.log_probabilities)

    def has(self, k: int) -> np.ndarray:
        """Return which images are of a class: bool (N,)."""
        return np.asarray(self.labels == k)


def predictions_of(
    logits_NK: np.ndarray,
    labels_N: np.ndarray,
    *,
    split: str,
    class_names: Sequence[str],
    digest: str = "",
    index_N: np.ndarray | None = None,
) -> Predictions:
    """Return the predictions that logits amount to.

    Args:
        logits_NK: float, (N, K), N at least 1.
        labels_N: integers in [0, K), (N,).
        index_N: see `Predictions`; by default 0 … N - 1.

    Raises:
        DivergedError: a logit is NaN or infinite.
        ValueError: the shapes do not fit each other, or there are no images.
    """
    if not len(labels_N):
        raise ValueError("no images to predict")
    check_finite(logits_NK, split)
    labels = np.asarray(labels_N, dtype=np.int64)
    log_probabilities_NK = log_softmax(logits_NK.astype(np.float64), axis=1)
    many = logits_NK.shape[1] > MOST_CLASSES_IN_FLOAT32
    return Predictions(
        split=split,
        class_names=tuple(class_names),
        digest=digest,
        index=np.arange(len(labels)) if index_N is None else np.asarray(index_N, dtype=np.int64),
        labels=labels,
        predicted=logits_NK.argmax(axis=1),
        logits=logits_NK.astype(np.float32),
        loss=-log_probabilities_NK[np.arange(len(labels)), labels].astype(np.float32),
        logits_dtype="float16" if many else "float32",
    )


def check_finite(logits_NK: np.ndarray, split: str) -> None:
    """Check that a model's logits are numbers.

    Raises:
        DivergedError: a logit is NaN or infinite.
    """
    if not (finite_N := np.isfinite(logits_NK).all(axis=1)).all():
        raise DivergedError(
            f"the model answers {int((~finite_N).sum()):,} of the {len(finite_N):,} {split} images with NaN "
            f"or infinity (the first is image {int((~finite_N).argmax())}): its weights have diverged, "
            "choose another run"
        )


def to_bytes(predictions: Predictions) -> bytes:
    """Return the predictions as a compressed .npz file, which `numpy.load` reads, too.

    Its arrays are `version`, `about` (JSON: split, class_names, digest, logits), `index`, `labels`,
    `predicted`, `logits` and `loss`, each integer in the smallest type that holds it.
    """
    logits = predictions.logits
    precision = "as the model gave them"
    if predictions.logits_dtype == "float16":
        logits = (logits - logits.max(axis=1, keepdims=True)).clip(np.finfo(np.float16).min, 0)
        precision = "less the highest one of each image, rounded to float16"
    about = {
        "split": predictions.split,
        "class_names": list(predictions.class_names),
        "digest": predictions.digest,
        "logits": precision,
    }
    file = io.BytesIO()
    np.savez_compressed(
        file,
        version=np.int64(VERSION),
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        index=_small(predictions.index),
        labels=_small(predictions.labels),
        predicted=_small(predictions.predicted),
        logits=logits.astype(predictions.logits_dtype),
        loss=predictions.loss,
    )
    return file.getvalue()


def from_bytes(content: bytes, where: str) -> Predictions:
    """Return the predictions that a file holds.

    Args:
        where: the file's name, for messages.

    Raises:
        TrackingError: the file is damaged, or was written by a later version.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            if (version := int(arrays["version"])) > VERSION:
                raise TrackingError(f"{where} is of version {version}: read it with a newer harness")
            about = json.loads(arrays["about"].tobytes())
            if about.get("kind") == KIND_OF_LABELS:
                raise TrackingError(
                    f"{where} holds multi-label predictions, which are not compared image by image"
                )
            return Predictions(
                split=str(about["split"]),
                class_names=tuple(map(str, about["class_names"])),
                digest=str(about["digest"]),
                index=arrays["index"].astype(np.int64),
                labels=arrays["labels"].astype(np.int64),
                predicted=arrays["predicted"].astype(np.int64),
                logits=arrays["logits"].astype(np.float32),
                loss=arrays["loss"].astype(np.float32),
                logits_dtype=str(arrays["logits"].dtype),
            )
    except DAMAGED as error:
        raise TrackingError(
            f"{where} is damaged ({first_line(error)}): `harness evaluate` writes it again"
        ) from error


def _small(values_N: np.ndarray) -> np.ndarray:
    """Return integers in the smallest type that holds them all."""
    highest = int(values_N.max(initial=0))
    lowest = int(values_N.min(initial=0))
    return values_N.astype(np.promote_types(np.min_scalar_type(highest), np.min_scalar_type(lowest)))
