"""Low-rank adapters (LoRA): puts them into a network by the library peft, and merges them into its weights.

`freezing.py` calls `insert_adapters` for `finetune=lora`, and then lets them train as it does any other
tensors. `harness.training.checkpoints.checkpoint` calls `merge_adapters`: all that loads a checkpoint gets
the network without adapters, and needs no peft. A resumed run alone takes the tensors as they are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping

from timm.layers import Conv2dSame
from torch import Tensor, nn

from harness.config.finetune import Lora
from harness.errors import ModelError, first_few, first_line
from harness.models.backbones import forward_on_meta
from harness.models.classifier import ImageClassifier
from harness.models.protocol import heads

log = logging.getLogger(__name__)

_NAME = "default"  # of the one adapter of each layer
_A, _B, _BASE = f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight", ".base_layer."


def insert_adapters(classifier: ImageClassifier, finetune: Lora) -> int:
    """Put an adapter beside each layer that the policy names, and return the number of these layers.

    A layer then is a module of peft's, with the layer itself as its `base_layer`. All other names stay.

    Raises:
        ConfigError: peft is not installed.
        ModelError: the network has no such layers.
    """
    finetune.check_installed()
    network = classifier.network
    adaptable = _adaptable(network)
    named = [name for name in adaptable if re.search(finetune.layers or "", name)]
    if not named:
        where = "" if finetune.layers is None else f" whose name has {finetune.layers!r} (finetune.layers)"
        examples = f"; there are {first_few(list(adaptable), 3)}" if adaptable else ""
        raise ModelError(
            f"finetune=lora: {type(network).__name__} has no plain linear layer or convolution in one group "
            f"below its head{where}{examples}"
        )
    runs = _that_run(classifier, adaptable)
    chosen = [name for name in named if name in runs]
    if unused := [name for name in named if name not in runs]:
        log.warning(
            "finetune=lora: %d layers get no adapter, because the network takes their weights without "
            "running them: %s",
            len(unused),
            first_few(unused, 3),
        )
    if not chosen:
        raise ModelError(
            f"finetune=lora: {type(network).__name__} runs none of the layers {first_few(named, 3)}"
        )
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=finetune.rank,
        lora_alpha=finetune.alpha,
        lora_dropout=finetune.dropout,
        target_modules="|".join(re.escape(name) for name in chosen),  # peft wants a full match
    )
    inject_adapter_in_model(config, network, _NAME)
    return len(chosen)


def adapter_names(network: nn.Module) -> set[str]:
    """Return the names of the adapters' parameters."""
    return {name for name, _ in network.named_parameters() if name.endswith((_A, _B))}


def merge_adapters(state: Mapping[str, Tensor], finetune: Lora) -> dict[str, Tensor]:
    """Return a state dict with each layer's adapter added to its weight, under the layers' usual names.

    Args:
        state: of a network, or of a classifier; it may have no adapters (any more).
    """
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, is_base, parameter = name.rpartition(_BASE)
        if name.endswith((_A, _B)):
            continue
        if is_base and parameter == "weight" and layer + _A in state:
            # A convolution's A has the layer's kernel size, and its B that of one pixel.
            down, up = (state[layer + suffix].double().flatten(1) for suffix in (_A, _B))
            delta = finetune.scaling * (up @ down)
            tensor = (tensor.double() + delta.view_as(tensor)).to(tensor.dtype)  # noqa: PLW2901
        merged[f"{layer}.{parameter}" if is_base else name] = tensor
    return merged


def _adaptable(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers below the head that can have an adapter, by name.

    These are layers to whose weight peft's product can be added: subclasses may change their weight before
    they use it, peft gives A neither dilation nor another padding, and of a layer with two names it would
    replace one.
    """
    in_head = {module for head in heads(network) for module in head.modules()}
    owners = [id(tensor) for _, tensor in network.named_parameters(remove_duplicate=False)]
    return {
        name: module
        for name, module in network.named_modules()
        if module not in in_head and _is_plain(module) and owners.count(id(module.weight)) == 1
    }


def _is_plain(module: nn.Module) -> bool:
    if type(module) is nn.Linear:
        return True
    if type(module) not in (nn.Conv2d, Conv2dSame):
        return False
    assert isinstance(module, nn.Conv2d)
    return module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"


def _that_run(classifier: ImageClassifier, layers: Mapping[str, nn.Module]) -> set[str]:
    """Return the names of the layers that run in a forward pass.

    Some networks compute with a layer's weight themselves: an adapter would not be part of that.
    """
    runs: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: runs.add(name)  # a closure, because a copy of the network shares it

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in layers.items()]
    try:
        forward_on_meta(classifier.network, classifier.image_size)
    except Exception as error:  # each network fails in its own way
        raise ModelError(
            f"finetune=lora cannot tell which layers of {type(classifier.network).__name__} run: "
            f"{first_line(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return runs
