"""timm's model protocol: what every network here answers, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn


class TimmNetwork(Protocol):
    """The part of the protocol that the harness relies on, besides `nn.Module` and `pretrained_cfg`."""

    def get_classifier(self) -> nn.Module | Iterable[nn.Module]:
        """Return the classification head, or several."""
        ...

    def group_matcher(self, coarse: bool = False) -> dict[str, Any] | Callable[[str], Any]:
        """Return the patterns that assign a parameter's name to a depth group."""
        ...


@runtime_checkable
class InitialisedFromImages(Protocol):
    """A network with a layer that is computed from training images; it must see some before it trains."""

    def init_from_images(self, images_BCHW: Tensor) -> None:
        """Take normalised float images of the training split."""
        ...


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters and buffers, those that no state dict holds too."""
    return [*module.named_parameters(), *module.named_buffers()]


def heads(network: nn.Module) -> list[nn.Module]:
    """Return the classification heads: one, or two of networks that were distilled."""
    classifier = cast(TimmNetwork, network).get_classifier()
    return [classifier] if isinstance(classifier, nn.Module) else list(classifier)


def head_names(network: nn.Module) -> set[str]:
    """Return the names of the parameters and buffers of the classification heads."""
    held = {id(tensor) for head in heads(network) for _, tensor in named_tensors(head)}
    names = {name for name, tensor in named_tensors(network) if id(tensor) in held}
    assert names, "the network has no classification head"
    return names


def replace_modules(network: nn.Module, substitute: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put others in the place of some of a network's modules: under all their names, and in their mode.

    A module with hooks stays, as it may not be what it looks like (weight norm is a hook).

    Args:
        substitute: returns what replaces a module, with the same tensors under the same names; None keeps it.
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
