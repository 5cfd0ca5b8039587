"""Every picture of a run, by the name of its file.

`harness.training.pictures` records what `draw_all` yields. The cheap ones need no pass through the network;
a sweep's ordinary trials record these alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from matplotlib.figure import Figure

from harness.analysis.predictions import Predictions
from harness.errors import first_line
from harness.models import ImageClassifier
from harness.pictures import embedding, galleries, gradcam, layers
from harness.pictures.style import to_array

log = logging.getLogger(__name__)

Draw = Callable[[], Figure]


def cheap_pictures(predictions: Predictions, gather: galleries.Gather) -> dict[str, Draw]:
    """Return the pictures that take a fraction of a second, by name ("val/highest_loss")."""
    split = predictions.split
    return {
        f"{split}/confident_mistakes": lambda: galleries.confident_mistakes_gallery(predictions, gather),
        f"{split}/examples": lambda: galleries.examples_of_split(predictions, gather),
    }


def costly_pictures(
    predictions: Predictions, gather: galleries.Gather, classifier: ImageClassifier
) -> dict[str, Draw]:
    """Return the pictures that take seconds, by name: they run the network, or import large libraries."""
    split = predictions.split
    place = int(np.argmin(predictions.loss))

    def feature_maps() -> Figure:
        name = predictions.class_names[predictions.labels[place]]
        return layers.feature_maps_figure(classifier, gather(np.array([place]))[0], f"{split}, {name}")

    return {
        f"{split}/highest_loss": lambda: galleries.highest_loss_gallery(predictions, gather),
        f"{split}/best_and_worst": lambda: galleries.best_and_worst_gallery(predictions, gather),
        f"{split}/label_errors": lambda: galleries.label_errors_gallery(predictions, gather),
        f"{split}/gradcam_right": lambda: gradcam.right_examples_figure(classifier, predictions, gather),
        f"{split}/gradcam_wrong": lambda: gradcam.wrong_examples_figure(classifier, predictions, gather),
        f"{split}/embedding": lambda: embedding.embedding_figure(classifier, predictions, gather),
        f"{split}/feature_maps": feature_maps,
        "filters": lambda: layers.filters_figure(classifier),
    }


def draw_all(pictures: Mapping[str, Draw]) -> Iterator[tuple[str, np.ndarray]]:
    """Draw the pictures one after the other, uint8 (H, W, 3); one that fails is left out with a warning.

    A trained model is worth more than a picture of it, so that a picture never ends a run.
    """
    for name, draw in pictures.items():
        try:
            pixels = to_array(draw())
        except Exception as error:  # timm's thousand networks fail in their own ways
            log.warning("the picture %s is left out: %s", name, first_line(error))
            continue
        yield name, pixels
