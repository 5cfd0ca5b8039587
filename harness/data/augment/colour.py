"""Changes colours by a factor per image; torchvision takes only one factor for a whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision rounds it


def grey_levels(images_BCHW: Tensor) -> Tensor:
    """Return the brightness of each pixel, float (B, 1, H, W), in the scale of the images."""
    weights = torch.tensor(LUMA, device=images_BCHW.device).view(1, 3, 1, 1)
    grey = (images_BCHW * weights).sum(dim=1, keepdim=True)
    return grey if images_BCHW.is_floating_point() else grey.floor()


def blend(images_BCHW: Tensor, degenerate: Tensor | float, factor: Tensor) -> Tensor:
    """Move from the degenerate images (factor 0) through the images (1) and beyond, within the dtype's range.

    Args:
        factor: Broadcasts against the images, e.g. (B, 1, 1, 1).
    """
    mixed = images_BCHW * factor + degenerate * (1.0 - factor)
    if images_BCHW.is_floating_point():
        return mixed.clamp(0.0, 1.0)
    return mixed.clamp(0, 255).to(images_BCHW.dtype)


def adjust_hue(images_BCHW: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue of each image.

    Args:
        images_BCHW: float in [0, 1].
        shift: In turns of the colour wheel; broadcasts against (B, 1, H, W).

    Source: https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
    """
    value, chroma = images_BCHW.amax(dim=1, keepdim=True), _spread(images_BCHW)
    sixths = (_hue_in_sixths(images_BCHW, value, chroma) + shift * 6.0) % 6.0
    phases = torch.tensor([5.0, 3.0, 1.0], device=images_BCHW.device).view(1, 3, 1, 1)
    k = (phases + sixths) % 6.0
    return value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


def _spread(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.amax(dim=1, keepdim=True) - images_BCHW.amin(dim=1, keepdim=True)


def _hue_in_sixths(images_BCHW: Tensor, value: Tensor, chroma: Tensor) -> Tensor:
    red, green, blue = images_BCHW.split(1, dim=1)
    safe = chroma.clamp(min=1e-12)  # grey pixels have no hue; any will do, for their chroma is 0
    from_green, from_blue = (blue - red) / safe + 2.0, (red - green) / safe + 4.0
    hue = torch.where(value == green, from_green, from_blue)
    return torch.where(value == red, (green - blue) / safe, hue)
