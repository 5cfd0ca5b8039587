"""The part of timm's model protocol that all networks here follow, and helpers that rely on it.

`freezing.py`, `trunk.py`, `pretrained.py` and others use these functions to handle networks without knowing
their architecture. A new from-scratch network needs the methods of :class:`TimmNetwork`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn


class TimmNetwork(Protocol):
    """The methods that the harness calls, besides those of `nn.Module`; and an attribute `pretrained_cfg`."""

    def get_classifier(self) -> nn.Module | Iterable[nn.Module]:
        """Return the classification head, or the heads."""
        ...

    def group_matcher(self, coarse: bool = False) -> dict[str, Any] | Callable[[str], Any]:
        """Return the patterns that assign a parameter's name to a depth group."""
        ...


@runtime_checkable
class InitialisedFromImages(Protocol):
    """A network with a layer that is computed from training images, before the first step."""

    def init_from_images(self, images_BCHW: Tensor) -> None:
        """Compute the layer.

        Args:
            images_BCHW: normalised images of the training split, float32.
        """
        ...


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters and buffers, including buffers that are in no state dict."""
    return [*module.named_parameters(), *module.named_buffers()]


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 (hex) of tensors: their names, types, shapes and values, in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def heads(network: nn.Module) -> list[nn.Module]:
    """Return the classification heads: one, or two for distilled networks."""
    classifier = cast(TimmNetwork, network).get_classifier()
    return [classifier] if isinstance(classifier, nn.Module) else list(classifier)


def head_names(network: nn.Module) -> set[str]:
    """Return the names of the parameters and buffers of the classification heads."""
    held = {id(tensor) for head in heads(network) for _, tensor in named_tensors(head)}
    names = {name for name, tensor in named_tensors(network) if id(tensor) in held}
    assert names, "the network has no classification head"
    return names


def replace_modules(network: nn.Module, substitute: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace some of a network's modules, under all names that they are registered under.

    Modules with hooks are kept, because a hook may change what they compute (weight norm is one).

    Args:
        substitute: returns the replacement of a module, with the same tensors under the same names, or None
            to keep the module.
    """
    places: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if name and not (module._forward_pre_hooks or module._forward_hooks):
            places.setdefault(module, []).append(name)
    for module, names in places.items():
        other = substitute(module)
        if other is not None:
            other.train(module.training)
            for name in names:
                network.set_submodule(name, other, strict=True)
