"""Grad-CAM: the parts of an image that speak for a class, as a map over the image.

`run.py` draws it over right and wrong predictions. The map is gradient × activation, summed over the
channels of one layer, negative values cut off (HiResCAM, Draelos & Carin 2020,
https://arxiv.org/abs/2011.08891). Where a network ends in average pooling and a linear layer it is the map
of Grad-CAM (Selvaraju et al. 2017). Where dense layers over places follow (`wide_cnn`), Grad-CAM's averaged
gradients would point elsewhere than the model looked. captum computes it, for frozen networks too, and
leaves no gradients behind. `layers.py` finds the layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from harness.analysis.figures import drawable_names
from harness.analysis.predictions import Predictions
from harness.models import ImageClassifier
from harness.pictures.examples import confidence, confident_hits, confident_mistakes
from harness.pictures.galleries import TILE_COLUMNS, Gather, prediction_lines
from harness.pictures.layers import MapLayer, Probed, in_eval_mode, map_layers, to_device, token_norm
from harness.pictures.style import QUIET, RIGHT, WRONG, message_figure
from harness.pictures.tiles import Tile, fitted, tiles_figure

WANTED_SIDE = 4  # cells; a coarser last map gives way to an earlier layer's, which still shows where
BATCH = 16  # images of one backward pass
NUM_EXAMPLES = 12  # of each: right, wrong
SMALLEST_PEAK = 1e-12
TOLERANCE = 1e-3  # of the logits: the probed network must be the network


class NoMapError(Exception):
    """The network has no layer that such a map can be drawn of; the message says why, in a sentence."""


@dataclass(frozen=True)
class Evidence:
    """For each image, how much each cell of a grid speaks for a class.

    Args:
        maps: float32 (N, H, W), at least 0; its unit is that of the logit.
        layer: the name of the layer whose cells they are.
    """

    maps: np.ndarray
    layer: str


def evidence_for(classifier: ImageClassifier, images_NHWC: np.ndarray, classes_N: np.ndarray) -> Evidence:
    """Return the map of each image's evidence for a class. Modes and gradients are left as they were.

    Args:
        images_NHWC: uint8, at least one.
        classes_N: the class that each map is about.

    Raises:
        NoMapError: no layer of the network has a usable map.
    """
    from captum.attr import LayerGradientXActivation

    probed = Probed(classifier)
    images = to_device(classifier, images_NHWC)
    classes = torch.from_numpy(np.asarray(classes_N, dtype=np.int64)).to(images.device)
    layer = choose_layer(probed, images[:1])
    method = LayerGradientXActivation(probed, layer.module, multiply_by_inputs=True)
    parts = []
    with in_eval_mode(classifier), torch.enable_grad():
        for some, wanted in zip(images.split(BATCH), classes.split(BATCH), strict=True):
            product = method.attribute(some.float() / 255, target=wanted)
            assert isinstance(product, Tensor)
            parts.append(layer.to_map(product.detach()).sum(1).relu().float().cpu())
    return Evidence(torch.cat(parts).numpy(), layer.name)


def choose_layer(probed: Probed, images_BCHW: Tensor) -> MapLayer:
    """Return the deepest layer with a map of at least 4×4 cells; where there is none, of at least 2×2.

    Raises:
        NoMapError: there is none, or the network's head sees other features than `forward_features` gives.
    """
    with torch.no_grad(), in_eval_mode(probed.classifier):
        whole, parts = probed.classifier(images_BCHW), probed(images_BCHW)
    if whole.shape != parts.shape or not bool(
        (whole - parts).abs().max() <= TOLERANCE * whole.abs().max().clamp(min=1)
    ):
        raise NoMapError("This network computes its logits in another way than by its features and its head.")
    layers = map_layers(probed, images_BCHW)
    if (wanted := token_norm(probed.classifier.network)) is not None:
        found = [layer for layer in layers if layer.name == wanted]
        if not found:
            raise NoMapError("This network reads a class token, and no layer before it has one token a cell.")
        return found[0]
    usable = [layer for layer in layers if min(layer.grid) >= WANTED_SIDE] or layers
    if not usable:
        kind = type(probed.classifier.network).__name__
        raise NoMapError(
            f"No layer of this network ({kind}) is known to have a map of at least 2×2 cells at "
            f"{probed.classifier.image_size} pixels."
        )
    return usable[-1]


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────


def right_examples_figure(classifier: ImageClassifier, predictions: Predictions, gather: Gather) -> Figure:
    """Draw confident right predictions, spread over the classes, each with the evidence for its class."""
    chosen = confident_hits(predictions, NUM_EXAMPLES)
    return _figure(classifier, predictions, gather, chosen, "Grad-CAM: right predictions", is_right=True)


def wrong_examples_figure(classifier: ImageClassifier, predictions: Predictions, gather: Gather) -> Figure:
    """Draw the most confident mistakes, with the evidence for the predicted and for the true class."""
    chosen = confident_mistakes(predictions, NUM_EXAMPLES)
    return _figure(classifier, predictions, gather, chosen, "Grad-CAM: wrong predictions", is_right=False)


def _figure(
    classifier: ImageClassifier,
    predictions: Predictions,
    gather: Gather,
    chosen: np.ndarray,
    title: str,
    *,
    is_right: bool,
) -> Figure:
    if not len(chosen):
        return message_figure(title, f"There is no such prediction on the {predictions.split} images.")
    images = gather(chosen)
    predicted, true = predictions.predicted[chosen], predictions.labels[chosen]
    try:
        evidence = evidence_for(classifier, images, predicted)
        for_true = evidence if is_right else evidence_for(classifier, images, true)
    except NoMapError as error:
        return message_figure(title, f"Not drawn: {error}")
    names, font = drawable_names(predictions.class_names)
    probabilities = confidence(predictions)[chosen]
    color = RIGHT if is_right else WRONG
    groups: list[list[Tile | None]] = []
    for place, image in enumerate(images):
        seen = _centre(image)
        texts = prediction_lines(names[true[place]], names[predicted[place]], probabilities[place], color)
        group: list[Tile | None] = [Tile(seen, texts)]
        shown = [(evidence, predicted[place])]
        if not is_right:
            shown.append((for_true, true[place]))
        for found, label in shown:
            map_HW = found.maps[place]
            what = "evidence for" if map_HW.max() > SMALLEST_PEAK else "no evidence for"
            lines = ((what, QUIET), (fitted(names[label], TILE_COLUMNS), QUIET))
            group.append(Tile(overlay(seen, map_HW), lines))
        groups.append(group)
    per_row = 4 if is_right else 2
    rows = [
        [tile for group in groups[start : start + per_row] for tile in group]
        for start in range(0, len(groups), per_row)
    ]
    height, width = evidence.maps.shape[1:]
    note = (
        f"Gradient × activation at {evidence.layer} ({height}×{width} cells), each map scaled by its own "
        "peak: yellow speaks most for the class, violet not at all. It is a first-order "
        "estimate of where the evidence lies. "
        f"{len(chosen)} of {int((predictions.correct == is_right).sum()):,} "
        f"{'right' if is_right else 'wrong'} {predictions.split} predictions, the most probable first"
        f"{', of each class in turn' if is_right else ''}."
    )
    return tiles_figure(rows, title, note, font=font)


def overlay(image_HWC: np.ndarray, map_HW: np.ndarray) -> np.ndarray:
    """Return the image in grey under the colours of the map: uint8 (H, W, 3), at least 128 pixels wide."""
    factor = max(1, round(128 / max(image_HWC.shape[:2])))
    image = image_HWC.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = image.shape[:2]
    peak = float(map_HW.max())
    share = map_HW / peak if peak > SMALLEST_PEAK else np.zeros_like(map_HW)
    large = Image.fromarray(share.astype(np.float32), mode="F").resize(
        (width, height), Image.Resampling.BILINEAR
    )
    colors = colormaps["viridis"](np.asarray(large).clip(0, 1))[..., :3] * 255
    grey = image.astype(np.float64).mean(axis=2, keepdims=True)
    return (0.5 * grey + 0.5 * colors).round().astype(np.uint8)


def _centre(image_HWC: np.ndarray) -> np.ndarray:
    """Return the square in the middle, which is what the network sees (`harness.models.preprocess`)."""
    height, width = image_HWC.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image_HWC[top : top + side, left : left + side]
