"""Which layers of a network have a map of the image, and what they hold: filters and feature maps.

`run.py` draws filters and feature maps; `gradcam.py` asks `map_layers` for a layer. It works for every
network that follows timm's protocol (`harness.models.protocol`), and finds no layer rather than a wrong
one: the shape of each output is checked against what the network says of itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from harness.models import ImageClassifier
from harness.pictures.style import DPI, QUIET, message_figure
from harness.pictures.tiles import Tile, tiles_figure

SMALLEST_DEVIATION = 1e-6  # of a channel that is not called constant
SMALLEST_SIDE = 2  # a map of one cell tells nothing about places
MAX_FILTERS, FILTER_COLUMNS, FILTER_PX = 64, 16, 48
MAX_DEPTHS, CHANNELS_SHOWN = 4, 8
LAST = "last features"  # the output of the network's `forward_features`


@dataclass(frozen=True)
class MapLayer:
    """A module whose output is a map: one vector of channels for each cell of a grid over the image.

    Args:
        layout: the order of the output's axes: "NCHW", "NHWC", or "tokens" (batch, prefix + cells, channels).
        grid: rows and columns of cells.
        prefix: tokens before those of the cells (a class token, say).
    """

    name: str
    module: nn.Module
    layout: Literal["NCHW", "NHWC", "tokens"]
    grid: tuple[int, int]
    channels: int
    prefix: int = 0

    def to_map(self, output: Tensor) -> Tensor:
        """Return an output, or a gradient of its shape, as (B, C, H, W)."""
        if self.layout == "tokens":
            return output[:, self.prefix :].unflatten(1, self.grid).permute(0, 3, 1, 2)
        return output.permute(0, 3, 1, 2) if self.layout == "NHWC" else output


class Probed(nn.Module):
    """A classifier with a place, `probe`, between the network's features and its head."""

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.probe = nn.Identity()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K), of uint8 images or floats in [0, 1]."""
        network: Any = self.classifier.network
        return network.forward_head(self.features(images_BCHW))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return what the head receives, as the network's `forward_features` gives it."""
        network: Any = self.classifier.network
        return self.probe(network.forward_features(self.classifier.preprocess(images_BCHW)))

    def vectors(self, images_BCHW: Tensor) -> Tensor:
        """Return the features that the last layer receives, (B, D)."""
        network: Any = self.classifier.network
        return network.forward_head(self.features(images_BCHW), pre_logits=True).flatten(1)


def to_device(classifier: ImageClassifier, images_NHWC: np.ndarray) -> Tensor:
    """Return images as the classifier takes them, uint8 (N, 3, H, W) on its device."""
    images = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2)
    return images.to(next(classifier.parameters()).device)


@contextlib.contextmanager
def in_eval_mode(classifier: ImageClassifier) -> Iterator[None]:
    """Put all modules in eval mode, and each in its own mode again at the end."""
    modes = {module: module.training for module in classifier.modules()}
    classifier.eval()
    try:
        yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training


# ── layers with a map ─────────────────────────────────────────────────────────────────────────────


def map_layers(probed: Probed, images_BCHW: Tensor) -> list[MapLayer]:
    """Return the layers that have a map of at least 2×2 cells of these images, from the input to the head."""
    return list(maps_of(probed, images_BCHW))


@torch.no_grad()
def maps_of(probed: Probed, images_BCHW: Tensor) -> dict[MapLayer, Tensor]:
    """Return the output of each layer that has a map, from the input to the head: (B, C, H, W)."""
    candidates = _candidates(probed)
    outputs: dict[str, list[Any]] = {name: [] for name in candidates}
    order: list[str] = []
    with contextlib.ExitStack() as hooks:
        for name, module in candidates.items():

            def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                # A copy: the next module may work in place.
                outputs[name].append(output.clone() if isinstance(output, Tensor) else None)
                order.append(name)

            hooks.callback(module.register_forward_hook(keep).remove)
        with in_eval_mode(probed.classifier):
            probed(images_BCHW)
    found: dict[MapLayer, Tensor] = {}
    for name in order:
        if len(outputs[name]) == 1 and isinstance(outputs[name][0], Tensor):  # not a module that runs twice
            layer = _layer(probed, name, candidates[name], outputs[name][0])
            if layer is not None:
                found[layer] = layer.to_map(outputs[name][0])
    return found if _has_feature_info(probed) else _last_of_each_grid(found)


def _candidates(probed: Probed) -> dict[str, nn.Module]:
    network = probed.classifier.network
    if _has_feature_info(probed):
        names = [info["module"] for info in network.feature_info]  # type: ignore[union-attr]
        names.append(token_norm(network) or "")
        modules = dict(network.named_modules())
        found = {name: modules[name] for name in names if name and name in modules}
    else:  # the harness's own networks: chains of layers
        found = {name: module for name, module in network.named_modules() if not list(module.children())}
    return {**found, LAST: probed.probe}


def _has_feature_info(probed: Probed) -> bool:
    return isinstance(getattr(probed.classifier.network, "feature_info", None), list)


def token_norm(network: nn.Module) -> str | None:
    """Return the name of the norm before the last block's attention, if the network reads a class token.

    Behind the last block, the head looks at the class token alone: the gradient of all others is zero there.
    """
    blocks = getattr(network, "blocks", None)
    is_read = getattr(network, "global_pool", None) == "token" and isinstance(blocks, nn.Sequential)
    return f"blocks.{len(blocks) - 1}.norm1" if is_read and blocks else None


def _layer(probed: Probed, name: str, module: nn.Module, output: Tensor) -> MapLayer | None:
    network: Any = probed.classifier.network
    channels = _channels(network, name, _has_feature_info(probed))
    if output.ndim == 4:
        is_last = getattr(network, "output_fmt", None) == "NHWC"
        axis = 3 if is_last else 1
        if channels is not None and output.shape[axis] != channels:
            if output.shape[4 - axis] != channels:
                return None
            axis = 4 - axis
        height, width = output.shape[2:] if axis == 1 else output.shape[1:3]
        layout: Literal["NCHW", "NHWC"] = "NCHW" if axis == 1 else "NHWC"
        layer = MapLayer(name, module, layout, (height, width), output.shape[axis])
    elif output.ndim == 3:
        source = getattr(network, "patch_embed", None) or getattr(network, "stem", None)
        grid = tuple(getattr(source, "grid_size", None) or ())
        prefix = int(getattr(network, "num_prefix_tokens", 0) or 0)
        if len(grid) != 2 or output.shape[1:] != (prefix + grid[0] * grid[1], channels):
            return None
        layer = MapLayer(name, module, "tokens", grid, channels or 0, prefix)
    else:
        return None
    return layer if min(layer.grid) >= SMALLEST_SIDE else None


def _channels(network: Any, name: str, has_feature_info: bool) -> int | None:
    """Return how many channels the network says that the output has; None if it says nothing."""
    if not has_feature_info:
        return None
    described = {info["module"]: info["num_chs"] for info in network.feature_info}
    return int(described.get(name, network.num_features))


def _last_of_each_grid(found: Mapping[MapLayer, Tensor]) -> dict[MapLayer, Tensor]:
    last = {layer.grid: layer for layer in found}
    return {layer: maps for layer, maps in found.items() if last[layer.grid] is layer}


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────


def filters_figure(classifier: ImageClassifier) -> Figure:
    """Draw the filters of the first layer, the one that sees the three colours."""
    title = "First-layer filters"
    found = [
        (name, tensor)
        for name, tensor in (*classifier.network.named_parameters(), *classifier.network.named_buffers())
        if tensor.ndim == 4 and tensor.shape[1] == 3 and name.endswith("weight")
    ]
    if not found:
        return message_figure(title, "No convolution of this network takes the three colours as its input.")
    name, weight = found[0]
    filters_FHWC = weight.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    largest_F = np.abs(filters_FHWC).max(axis=(1, 2, 3), keepdims=True)
    pixels = np.round(127.5 + 127.5 * filters_FHWC / np.maximum(largest_F, 1e-12)).astype(np.uint8)
    shown = pixels[:MAX_FILTERS]
    tiles = [Tile(filter_HWC) for filter_HWC in shown]
    rows = [tiles[start : start + FILTER_COLUMNS] for start in range(0, len(tiles), FILTER_COLUMNS)]
    count = f"all {len(pixels)}" if len(shown) == len(pixels) else f"the first {len(shown)} of {len(pixels)}"
    height, width = pixels.shape[1:3]
    note = (
        f"{count} filters of {name.removesuffix('.weight')}, {height}×{width}; grey is zero, each is scaled "
        "by its own largest weight"
    )
    return tiles_figure(rows, title, note, side=FILTER_PX)


def feature_maps_figure(classifier: ImageClassifier, image_HWC: np.ndarray, title_of_image: str) -> Figure:
    """Draw the strongest channels of an image's feature maps, at up to four depths.

    Args:
        image_HWC: uint8.
        title_of_image: what it is of.
    """
    title = f"Feature maps of one image ({title_of_image})"
    found = maps_of(Probed(classifier), to_device(classifier, image_HWC[None]))
    if not found:
        return message_figure(title, "No layer of this network has a map of at least 2×2 cells.")
    layers = list(found)
    places = np.unique(np.linspace(0, len(layers) - 1, min(MAX_DEPTHS, len(layers))).round().astype(int))
    figure = Figure(figsize=(11, 0.8 + 1.08 * len(places)), dpi=DPI)
    figure.text(0.012, 1 - 0.12 / figure.get_figheight(), title, fontsize=12, va="top", weight="bold")
    note = (
        f"in each row the {CHANNELS_SHOWN} channels that vary most over the image; violet is the lowest "
        "value of a channel, yellow its highest"
    )
    figure.text(0.012, 1 - 0.38 / figure.get_figheight(), note, fontsize=9, va="top", color=QUIET)
    top = 1 - 0.75 / figure.get_figheight()
    grid = figure.add_gridspec(
        len(places), CHANNELS_SHOWN + 1, left=0.16, right=0.99, top=top, bottom=0.02, wspace=0.06, hspace=0.08
    )
    for row, place in enumerate(places):
        layer, maps_CHW = layers[place], found[layers[place]][0].float().cpu().numpy()
        deviations_C = maps_CHW.std(axis=(1, 2))
        varying = int((deviations_C > SMALLEST_DEVIATION).sum())
        chosen = np.argsort(-deviations_C, kind="stable")[: min(CHANNELS_SHOWN, varying)]
        y = top - (top - 0.02) * (row + 0.5) / len(places)
        label = (
            f"{layer.name}, {layer.grid[0]}×{layer.grid[1]}\n{varying:,} of {layer.channels:,}\nchannels vary"
        )
        figure.text(0.012, y, label, fontsize=9, va="center")
        for column in range(len(chosen) + 1):
            axes = figure.add_subplot(grid[row, column])
            axes.set_axis_off()
            if column:
                axes.imshow(maps_CHW[chosen[column - 1]], cmap="viridis", interpolation="nearest")
            elif row == 0:
                axes.imshow(image_HWC, interpolation="nearest")
    return figure
