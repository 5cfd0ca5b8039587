"""Gives a network of timm a stem for small images (`model.stem=small_image`).

`backbones.py` calls this. Networks for 224 pixels begin with a convolution of stride 2, and many pool after
it: of an image of 32 pixels hardly a pixel is left in their last stages. He et al. (2016) train on CIFAR-10
with a first convolution of 3×3 pixels, stride 1, and no pooling. That is what a new network gets here; a
pretrained one keeps the kernels that its weights are for, and only the strides change.
"""

from __future__ import annotations

from typing import Any

from timm.models.convnext import ConvNeXt
from torch import nn

from harness.errors import ModelError

# The pooling that follows the first convolution at once: of ResNets, of ResNet-V2, of DenseNets.
_POOLS = ("maxpool", "stem.pool", "features.pool0")
_KERNEL = 3  # pixels


def stem_options(model_class: type | None) -> dict[str, Any]:
    """Return timm's own argument for a small stem, of the network classes that have one."""
    return {"patch_size": 1} if model_class is ConvNeXt else {}


def make_stem_small(network: nn.Module, name: str, *, is_pretrained: bool) -> None:
    """Let the first convolution keep the size of its input, and remove the pooling after it.

    Args:
        name: of the model, for messages.
        is_pretrained: the first convolution keeps its kernel; otherwise a larger one becomes one of 3×3.

    Raises:
        ModelError: the network does not begin with a convolution of stride 2.
    """
    if isinstance(network, ConvNeXt) and not is_pretrained:
        return  # built by `stem_options`
    first: Any = network.pretrained_cfg.get("first_conv")  # type: ignore[union-attr, operator]
    convolution = network.get_submodule(first) if isinstance(first, str) else None
    if not isinstance(convolution, nn.Conv2d) or convolution.stride != (2, 2):
        raise ModelError(
            f"model.stem=small_image gives the first convolution stride 1 instead of 2, and {name} "
            f"{_what_it_has(convolution)}: use model.stem=default, with a larger model.image_size"
        )
    convolution.stride = (1, 1)
    if convolution.kernel_size[0] > _KERNEL and not is_pretrained and type(convolution) is nn.Conv2d:
        has_bias = convolution.bias is not None
        small = nn.Conv2d(
            convolution.in_channels, convolution.out_channels, _KERNEL, padding=1, bias=has_bias
        )
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNets
        network.set_submodule(first, small, strict=True)
    for pool in _POOLS:
        if pool in dict(network.named_modules()):
            network.set_submodule(pool, nn.Identity(), strict=True)


def _what_it_has(convolution: nn.Module | None) -> str:
    if not isinstance(convolution, nn.Conv2d):
        return "does not begin with a single convolution"
    if convolution.stride == convolution.kernel_size:
        height, width = convolution.kernel_size
        return f"cuts its input into patches of {height}×{width} pixels"
    return f"begins with stride {convolution.stride[0]}"
