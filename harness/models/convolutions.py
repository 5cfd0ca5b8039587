"""Computes two kinds of convolution on CPUs by faster operations, with equal results up to rounding.

`harness.training.train` replaces a network's convolutions before the first step, so that a run uses the same
kernels from its beginning to its end. A 1 x 1 convolution is computed as a matrix product, which takes 0.4 to
1.0 times as long (torch 2.14, fp32, forward and backward). With small images, the last feature maps of a
mobile network have 2 x 2 pixels. On these a depthwise convolution is a short sum of products: 8 ms in place
of 33 ms for 64 images, 1,152 channels and a 5 x 5 filter.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.models.protocol import replace_modules

LARGEST_MAP = 4  # pixels; the work grows with its square, and at 3 x 3 pixels conv2d is faster


class PointwiseConv2d(nn.Conv2d):
    """A 1 x 1 convolution, computed as a matrix product on a CPU in fp32."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        if not _runs_in_fp32_on_cpu(images_BCHW):
            return super().forward(images_BCHW)
        pixels_BHWC = images_BCHW.permute(0, 2, 3, 1)  # a view, where images are channels_last
        return F.linear(pixels_BHWC, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class DepthwiseConv2d(nn.Conv2d):
    """A convolution with a group for each channel; on small maps computed as a sum on a CPU in fp32."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        height, width = images_BCHW.shape[-2:]
        if height * width > LARGEST_MAP or not _runs_in_fp32_on_cpu(images_BCHW):
            return super().forward(images_BCHW)
        return depthwise_as_sum(images_BCHW, self.weight)


def speed_up_convolutions(network: nn.Module) -> None:
    """Replace pointwise and depthwise convolutions by the classes above, with the same parameters."""
    replace_modules(network, _faster)


def _faster(module: nn.Module) -> nn.Module | None:
    if type(module) is not nn.Conv2d or module.stride != (1, 1) or module.padding_mode != "zeros":
        return None
    if module.kernel_size == (1, 1) and module.groups == 1 and module.padding == (0, 0):
        return _as(PointwiseConv2d, module)
    return _as(DepthwiseConv2d, module) if _is_depthwise(module) else None


def _as(kind: type[nn.Conv2d], conv: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution of another class with the same parameters."""
    other = kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta",  # takes neither memory nor random numbers: the parameters are replaced at once
    )
    other.weight, other.bias = conv.weight, conv.bias
    return other


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.bias is None
        and conv.dilation == (1, 1)
        and conv.padding == tuple(size // 2 for size in conv.kernel_size)
        and all(size % 2 == 1 for size in conv.kernel_size)
    )


def _runs_in_fp32_on_cpu(images_BCHW: Tensor) -> bool:
    return images_BCHW.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def depthwise_as_sum(images_BCHW: Tensor, weight_C1KK: Tensor) -> Tensor:
    """Return the depthwise convolution of stride 1, padded with zeros to the same size.

    Every output pixel is a sum over all input pixels, each weighted by the filter's tap at the offset between
    them.
    """
    batch, channels, height, width = images_BCHW.shape
    taps_TC = weight_C1KK.flatten(1).T
    nothing_1C = taps_TC.new_zeros(1, channels)
    weights_OIC = torch.cat([taps_TC, nothing_1C])[_taps_between(height, width, *weight_C1KK.shape[2:])]
    pixels_B1IC = images_BCHW.permute(0, 2, 3, 1).reshape(batch, 1, height * width, channels)
    summed_BOC = (pixels_B1IC * weights_OIC).sum(2)
    return summed_BOC.view(batch, height, width, channels).permute(0, 3, 1, 2)


@functools.cache
@torch.inference_mode(False)  # the cached tensor is also used where gradients are needed
def _taps_between(height: int, width: int, tall: int, wide: int) -> Tensor:
    """Return the tap's index for each output and input pixel, int64 (O, I); tall · wide if there is none."""
    rows, columns = torch.arange(height * width) // width, torch.arange(height * width) % width
    tap_row = rows[None, :] - rows[:, None] + tall // 2
    tap_column = columns[None, :] - columns[:, None] + wide // 2
    is_inside = (tap_row >= 0) & (tap_row < tall) & (tap_column >= 0) & (tap_column < wide)
    return torch.where(is_inside, tap_row * wide + tap_column, tall * wide)
