"""Sets the new head of a pretrained network to zero, so that it starts without random logits.

`backbones.py` calls `start_head_at_zero` after it has loaded the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models.protocol import heads


@torch.no_grad()
def start_head_at_zero(network: nn.Module, image_size: int) -> None:
    """Set the last layer of each head to zero: random logits would disturb the backbone in the first steps.

    Earlier layers are left alone: in a head with two layers of zeros no weight ever gets a gradient. The last
    layer is found by running the network: beginning with the layer that ran last, layers that yield as many
    values as there are classes are zeroed until all logits are zero.
    Source: Kolesnikov et al. (2020), "Big Transfer", which initialises the new head with zeros.

    Args:
        image_size: the side, in pixels, of the two random images that the network is run on.

    Raises:
        ModelError: the head receives equal or non-finite features for two different images, so the pretrained
            weights are unusable.
    """
    images = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    was_training = network.training
    network.eval()
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    hooks = [layer.register_forward_hook(_keep(seen)) for layer in _layers(network)]
    try:
        logits = network(images)
        zeroed = []
        for layer in [layer for layer in reversed(seen) if logits.shape[-1] in seen[layer][1].shape[1:]]:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
            zeroed.append(layer)
            if not network(images).any():
                break
    finally:
        for hook in hooks:
            hook.remove()
        network.train(was_training)
    for layer in zeroed:
        first, second = seen[layer][0]
        if torch.equal(first, second) or not bool(first.isfinite().all()):
            raise ModelError(
                f"the pretrained features of {type(network).__name__} are the same for two different images, "
                "or not finite: no head can learn from them; check the weights, or use model.pretrained=false"
            )


def _layers(network: nn.Module) -> list[nn.Module]:
    """Return the linear and convolutional layers of the heads."""
    found = {module: None for head in heads(network) for module in head.modules()}
    return [module for module in found if any(p.ndim > 1 for p in module.parameters(recurse=False))]


def _keep(seen: dict[nn.Module, tuple[Tensor, Tensor]]):  # type: ignore[no-untyped-def]
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.pop(layer, None)  # keeps `seen` in the order of the layers' last runs
        seen[layer] = (inputs[0].detach().clone(), output)

    return hook
