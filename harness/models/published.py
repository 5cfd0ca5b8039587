"""Networks as they were published, with their own heads and the names of their classes.

`harness.training.teacher` takes teachers from here; a network that is to be trained gets a new head
(`backbones.py`).
"""

from __future__ import annotations

from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from harness.config.schema import TimmModel
from harness.errors import ModelError, did_you_mean, first_line
from harness.models.classifier import ImageClassifier
from harness.models.preprocess import Preprocess
from harness.models.pretrained import check_finite, find_weights, read_packaged

PACKAGED = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
OF_TIMM = "timm:"  # before the name of one of timm's networks
ELSEWHERE = ("hf-hub:", "local-dir:")  # in front of timm's names of networks that others have published


def load_published(name: str) -> tuple[ImageClassifier, list[tuple[str, ...]]]:
    """Return a published network on the CPU, in evaluation mode, and its classes in the head's order.

    The classes are given under each name that they have: ImageNet's have synsets (n01440764) and descriptions
    (tench, Tinca tinca).

    Args:
        name: one of `PACKAGED`, or `timm:` before a name that `timm.create_model` takes.

    Raises:
        ModelError: the network or its weights are not there, or it does not say which classes it knows.
    """
    network = _packaged(name) if name in PACKAGED else _of_timm(name.removeprefix(OF_TIMM))
    check_finite(network.state_dict(), name)
    described = resolve_model_data_config(network)
    preprocess = Preprocess(
        described["input_size"][-1], described["mean"], described["std"], described["interpolation"]
    )
    return ImageClassifier(network, preprocess, is_pretrained=True).eval(), _class_names(network, name)


def _packaged(name: str) -> nn.Module:
    network = timm.create_model(f"tf_{name}")
    network.load_state_dict(read_packaged(name, network))
    return network


def _of_timm(name: str) -> nn.Module:
    if name.startswith(ELSEWHERE):
        return _create(name)
    if not timm.is_model(name):
        known = [*timm.list_models(), *timm.list_pretrained()]
        raise ModelError(f"timm has no network {name!r}{did_you_mean(name, known)}")
    file = find_weights(TimmModel(name=name, pretrained=True))
    return _create(name, {} if file is None else {"pretrained_cfg_overlay": {"file": file}})


def _create(name: str, options: dict[str, Any] | None = None) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, **(options or {}))
    except Exception as error:  # each publisher's network fails in its own way
        raise ModelError(f"timm cannot load {name}: {first_line(error)}") from error


def _class_names(network: nn.Module, name: str) -> list[tuple[str, ...]]:
    described: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    if own := described.get("label_names"):
        return [tuple(map(str, own))]
    subset = infer_imagenet_subset(network)
    if subset is None:
        raise ModelError(
            f"{name} does not say which classes it knows: export a run of it, and name the bundle's folder"
        )
    info = ImageNetInfo(subset)
    return [tuple(info.label_names()), tuple(info.label_descriptions())]


def is_published(name: str) -> bool:
    """Tell whether a name is one that `load_published` takes."""
    return name in PACKAGED or name.startswith(OF_TIMM)
