"""Builds timm's networks: by name, for an image size, with pretrained weights or without.

`build_model` in `classifier.py` calls `build_backbone`. Read on in `pretrained.py` for where weights come
from and how they are checked.
"""

from __future__ import annotations

import copy
import difflib
import functools
from typing import Any, NoReturn, get_type_hints

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from harness.config.schema import EfficientNetLite, TimmModel
from harness.errors import ImageSizeError, ModelError, did_you_mean, first_line
from harness.models.head import start_head_at_zero
from harness.models.pretrained import check_finite, find_weights, load_backbone, load_packaged
from harness.models.stem import make_stem_small, stem_options
from harness.models.weight_files import read_state_dict


def build_backbone(
    config: EfficientNetLite | TimmModel, num_classes: int, *, load_weights: bool
) -> nn.Module:
    """Return timm's network with a new head for `num_classes` classes.

    Args:
        load_weights: False builds the architecture only: no file and no hub is needed, and the meta device
            works.

    Raises:
        ModelError: timm does not know the name, the weights cannot be loaded, the network rejects the size,
            or has no stem that `model.stem` could change.
    """
    if isinstance(config, EfficientNetLite):
        name, network = config.kind, _build_lite(config, num_classes, load_weights)
    else:
        name, network = config.name, _build_timm(config, num_classes, load_weights)
    if config.stem == "small_image":
        make_stem_small(network, name, is_pretrained=config.is_pretrained)
    if isinstance(config, TimmModel):  # EfficientNet-Lite accepts every size that can be set
        _check_image_size(network, config)
    if config.is_pretrained and load_weights:
        start_head_at_zero(network, config.image_size or _own_size(network))
    return network


def _build_lite(config: EfficientNetLite, num_classes: int, load_weights: bool) -> nn.Module:
    # The `tf_` variant pads as TensorFlow does. The packaged weights would load into the plain variant, too,
    # and predict badly there.
    network = timm.create_model(
        f"tf_{config.kind}",
        num_classes=num_classes,
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
    )
    if config.pretrained and load_weights:
        load_packaged(config.kind, network)
    return network


def _build_timm(config: TimmModel, num_classes: int, load_weights: bool) -> nn.Module:
    _check_name(config.name)
    if not (config.is_pretrained and load_weights):
        return _create(config, num_classes)
    file = find_weights(config)
    if file is None:  # only timm can fetch or read what is published
        network = _create(config, num_classes, pretrained=True)
        check_finite(network.state_dict(), f"the published file of {config.name}")
        return network
    source = f"model.weights={config.weights}" if config.weights is not None else file
    network = _create(config, num_classes)
    load_backbone(
        network, read_state_dict(file, source), source, functools.partial(_adapt, config, num_classes)
    )
    return network


class _StateAdapted(Exception):  # noqa: N818 - a way out, not an error
    """Carries the state dict that timm was about to load, and so ends the building of the network."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state


def _adapt(config: TimmModel, num_classes: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names and in the shapes of timm's network, converted by timm's own filter.

    Publishers name and shape tensors in their own ways, and timm has no public function that converts them:
    only its constructors do, just before they load. So timm builds a second network, on the meta device where
    it takes neither memory nor random numbers, and a hook stops it at its `load_state_dict`.
    """

    def stop_before_loading(module: nn.Module, adapted: dict[str, Tensor], *_: object) -> NoReturn:
        raise _StateAdapted(dict(adapted))

    def watch(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        parent.register_load_state_dict_pre_hook(stop_before_loading)

    # Without the name of a head, timm does not take the head's tensors out.
    overlay = {"state_dict": state, "custom_load": False, "classifier": None}
    # torch calls `watch` whenever a module gets a submodule; the root of the new network is one of the
    # parents.
    hook = register_module_module_registration_hook(watch)
    try:
        with torch.device("meta"):
            timm.create_model(
                config.name,
                pretrained=True,
                num_classes=num_classes,
                pretrained_cfg_overlay=overlay,
                **_timm_options(config),
            )
    except _StateAdapted as reached:
        return reached.state
    finally:
        hook.remove()
    raise AssertionError(f"timm has built {config.name} without loading weights")


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        # timm has more than a thousand names: only similar ones are shown.
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = did_you_mean(name, near) or "; timm.list_models() lists the known ones"
        raise ModelError(f"timm has no model named {name!r}{hint}")
    architecture, _, tag = name.partition(".")
    known = timm.list_pretrained(f"{architecture}.*")
    if "." in name and name not in known:
        if not tag:
            known = [architecture, *known]
        raise ModelError(f"timm has no weights named {name!r}{did_you_mean(name, known)}")


def _create(config: TimmModel, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    try:
        return timm.create_model(
            config.name, pretrained=pretrained, num_classes=num_classes, **_timm_options(config)
        )
    except Exception as error:  # each of timm's thousand constructors and loaders fails in its own way
        source = " with weights from the hub" if pretrained else ""
        settings = "".join(
            f", model.{key}={value}"
            for key, value in config.model_dump(include={"image_size", "drop_rate", "drop_path_rate"}).items()
            if value
        )
        raise ModelError(
            f"timm cannot build model.name={config.name}{settings}{source}: {first_line(error)}"
        ) from error


def _class_of(name: str) -> type | None:
    """Return the class of the networks that timm's function of this name builds."""
    found = get_type_hints(timm.model_entrypoint(name)).get("return")
    return found if isinstance(found, type) else None


def _timm_options(config: TimmModel) -> dict[str, Any]:
    """Return only the arguments that are set: not every model takes every one."""
    image_size = config.image_size if _has_fixed_input_size(config.name) else None
    wishes = {"img_size": image_size, "drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    if config.stem == "small_image" and not config.is_pretrained:
        wishes |= stem_options(_class_of(config.name))
    return {key: value for key, value in wishes.items() if value}


def _has_fixed_input_size(name: str) -> bool:
    """Tell whether the model is built for one input size, as ViTs are; other models reject `img_size`."""
    described = timm.get_pretrained_cfg(name)
    return described is not None and described.fixed_input_size


def _check_image_size(network: nn.Module, config: TimmModel) -> None:
    """Pass an image through on the meta device, so that a wrong size is noticed before training."""
    own_size = _own_size(network)
    size = config.image_size or own_size
    try:
        forward_on_meta(network, size)
    except Exception as meta_error:
        if any(parameter.is_meta for parameter in network.parameters()) or not _forward_works(network, size):
            raise ImageSizeError(
                f"model.image_size={size} is rejected by {config.name}: {first_line(meta_error)}; "
                f"its own size is {own_size}"
            ) from meta_error


def _own_size(network: nn.Module) -> int:
    return int(resolve_model_data_config(network)["input_size"][-1])


def forward_on_meta(network: nn.Module, size: int) -> None:
    """Pass an image through a copy of the network that takes no memory; the network's hooks are called."""
    tensors = [*network.parameters(), *network.buffers()]
    # Given this memo, deepcopy copies the structure but takes the meta twin of each tensor: no memory.
    twins: dict[int, Any] = {id(tensor): _meta_twin(tensor) for tensor in tensors}
    twin = copy.deepcopy(network, twins).eval()
    with torch.inference_mode():
        twin(torch.empty(1, 3, size, size, device="meta"))


def _meta_twin(tensor: torch.Tensor) -> torch.Tensor:
    twin = torch.empty_like(tensor, device="meta")
    return nn.Parameter(twin, requires_grad=False) if isinstance(tensor, nn.Parameter) else twin


def _forward_works(network: nn.Module, size: int) -> bool:
    """Run the network on the CPU: a few models need values of buffers, which the meta device lacks."""
    try:
        with torch.inference_mode():
            copy.deepcopy(network).eval()(torch.zeros(1, 3, size, size))
    except Exception:  # the caller reports the size, with the error of the meta device
        return False
    return True
