"""Records the pictures of a run (`harness.pictures`): as files below `pictures/`, and in MLflow's image grid.

`train.py` (after training, and in better epochs) and `evaluate.py` call it. Which are drawn is decided by
`evaluation.pictures`, and by whether somebody will look at this run in particular (`closely`).

    pictures/learning_curves.png, filters.png
    pictures/val/highest_loss.png, confident_mistakes.png, best_and_worst.png, label_errors.png,
        gradcam_right.png, gradcam_wrong.png, embedding.png, feature_maps.png

An ordinary trial of a sweep has the learning curves and the confident mistakes. The galleries, and the
predictions of the same few images (`examples`), are also images of MLflow's grid, at step 0, so that it shows
those of several runs side by side. `examples_by_epoch` has the epochs on the way as its steps.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from matplotlib.figure import Figure

from harness.analysis.predictions import Predictions, predictions_of
from harness.data.splits import ImageArrays
from harness.models import ImageClassifier
from harness.tracking import Tracker

FOLDER = "pictures"
GALLERIES = ("highest_loss", "confident_mistakes", "best_and_worst", "label_errors")
EXAMPLES, BY_EPOCH = "examples", "examples_by_epoch"

Wish = Literal["auto", "all", "none"]  # evaluation.pictures


def wants_all(wish: Wish, closely: bool) -> bool:
    """Return whether the pictures that take seconds are drawn, too."""
    return wish == "all" or (wish == "auto" and closely)


def record_pictures(
    tracker: Tracker,
    predictions: Predictions,
    arrays: ImageArrays,
    load_classifier: Callable[[], ImageClassifier],
    *,
    wish: Wish,
    closely: bool,
) -> None:
    """Record the pictures of a model's predictions on a split.

    Args:
        load_classifier: called only if pictures are drawn that need the network.
        wish: `evaluation.pictures`.
        closely: draw all of them where `wish` is "auto".
    """
    if wish == "none":
        return
    from harness.pictures import run

    _record(tracker, run.cheap_pictures(predictions, arrays.gather))
    if wants_all(wish, closely):
        _record(tracker, run.costly_pictures(predictions, arrays.gather, load_classifier()))


def record_learning_curves(
    tracker: Tracker, history: Sequence[Mapping[str, float]], best_epoch: int, monitor: str, wish: Wish
) -> None:
    """Record the learning curves of a run, see `harness.pictures.curves.learning_curves`."""
    if wish == "none":
        return
    from harness.pictures.curves import learning_curves

    _record(tracker, {"learning_curves": lambda: learning_curves(history, best_epoch, monitor)})


class ExamplesOfEpochs:
    """Records the predictions of the same few validation images in the epochs that were better than the last.

    They are images with a step: MLflow's slider goes through the epochs. In a long run, later epochs are
    recorded more and more rarely: about twenty of the first hundred.
    """

    def __init__(
        self, tracker: Tracker, arrays: ImageArrays, class_names: Sequence[str], split: str = "val"
    ) -> None:
        self.tracker = tracker
        self.arrays = arrays
        self.class_names = class_names
        self.split = split
        self._next = 0  # the first epoch that is recorded again

    def __call__(self, epoch: int, logits_NK: torch.Tensor) -> None:
        """Record an epoch, unless the last recorded one is too close.

        Args:
            logits_NK: of all images of the split.
        """
        if epoch < self._next:
            return
        self._next = epoch + 1 + epoch // 5
        from harness.pictures.examples import evenly_spread
        from harness.pictures.galleries import NUM_EXAMPLES, examples_gallery

        chosen = evenly_spread(NUM_EXAMPLES, len(self.arrays))
        predictions = predictions_of(
            logits_NK[chosen].float().cpu().numpy(),
            self.arrays.labels[chosen],
            split=self.split,
            class_names=self.class_names,
        )
        draw = {
            f"{self.split}/{BY_EPOCH}": lambda: examples_gallery(
                predictions, lambda places: self.arrays.gather(chosen[places])
            )
        }
        _record(self.tracker, draw, epoch)


def _record(tracker: Tracker, pictures: Mapping[str, Callable[[], Figure]], step: int = 0) -> None:
    """Draw and record pictures, by name; a gallery also as an image with a step, examples only so."""
    from PIL import Image

    from harness.pictures.run import draw_all

    for name, pixels in draw_all(pictures):
        kind = name.rpartition("/")[2]
        if kind not in (EXAMPLES, BY_EPOCH):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png")
            tracker.log_bytes(file.getvalue(), f"{FOLDER}/{name}.png")
        if kind in (*GALLERIES, EXAMPLES, BY_EPOCH):
            tracker.log_image(pixels, f"{FOLDER}/{name}", step)
