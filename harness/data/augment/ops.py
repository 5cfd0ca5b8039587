"""The operations of the augmentation policies, each with a magnitude per image.

All take and return uint8 (N, 3, H, W), and take magnitudes as float (N,). They compute the same as the
functions of torchvision.transforms.v2 applied to each image. Geometric operations use nearest-neighbour
interpolation, or, if asked, bilinear, and fill with black, as torchvision's policies do.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from harness.data.augment.colour import blend, grey_levels


def keep(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Change nothing."""
    return images


# ── geometry ──────────────────────────────────────────────────────────────────────────────────────


def shear_x(images: Tensor, levels: Tensor, *, bilinear: bool = False) -> Tensor:
    """Shift each row sideways by `levels` times its distance from the top."""
    return _affine(images, _matrix(levels, (1.0, levels, 0.0), (0.0, 1.0, 0.0)), (0.0, 0.0), bilinear)


def shear_y(images: Tensor, levels: Tensor, *, bilinear: bool = False) -> Tensor:
    """Shift each column up or down by `levels` times its distance from the left."""
    return _affine(images, _matrix(levels, (1.0, 0.0, 0.0), (levels, 1.0, 0.0)), (0.0, 0.0), bilinear)


def translate_x(images: Tensor, pixels: Tensor) -> Tensor:
    """Shift to the right by whole pixels."""
    return _affine(images, _matrix(pixels, (1.0, 0.0, -pixels.trunc()), (0.0, 1.0, 0.0)), (0.0, 0.0))


def translate_y(images: Tensor, pixels: Tensor) -> Tensor:
    """Shift downwards by whole pixels."""
    return _affine(images, _matrix(pixels, (1.0, 0.0, 0.0), (0.0, 1.0, -pixels.trunc())), (0.0, 0.0))


def rotate(images: Tensor, degrees: Tensor, *, bilinear: bool = False) -> Tensor:
    """Rotate counter-clockwise around the centre."""
    return rotate_and_scale(images, degrees, torch.ones_like(degrees), bilinear=bilinear)


def rotate_and_scale(images: Tensor, degrees: Tensor, scales: Tensor, *, bilinear: bool = True) -> Tensor:
    """Rotate counter-clockwise around the centre, and enlarge by a factor from there."""
    height, width = images.shape[-2:]
    radians = degrees * (math.pi / 180)
    cos, sin = radians.cos() / scales, radians.sin() / scales
    matrix = _matrix(degrees, (cos, -sin, 0.0), (sin, cos, 0.0))
    return _affine(images, matrix, (width / 2, height / 2), bilinear)


def _matrix(like: Tensor, for_x: tuple[Tensor | float, ...], for_y: tuple[Tensor | float, ...]) -> Tensor:
    """Stack numbers and per-image values into matrices, float (N, 2, 3)."""
    rows = [torch.as_tensor(value, device=like.device).expand_as(like) for value in (*for_x, *for_y)]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def _affine(
    images: Tensor, from_output_N23: Tensor, origin: tuple[float, float], bilinear: bool = False
) -> Tensor:
    """Fetch each output pixel from the point of the input that the matrix of its image maps it to.

    Args:
        from_output_N23: Maps (x, y, 1) of an output pixel's centre to a point of the input, in pixels
            from `origin`.
        origin: (x, y) from the top left corner.
        bilinear: Whether a point is the weighted mean of the four pixels around it, else the nearest pixel.
    """
    batch, channels, height, width = images.shape
    x = torch.arange(width, device=images.device) + 0.5 - origin[0]
    y = torch.arange(height, device=images.device) + 0.5 - origin[1]
    ones = torch.ones(height, width, device=images.device)
    points = torch.stack([*torch.meshgrid(x, y, indexing="xy"), ones])
    source_x, source_y = (from_output_N23 @ points.flatten(1)).unbind(dim=1)
    if bilinear:
        # grid_sample counts from -1 at one edge of the image to 1 at the other.
        across, down = (source_x + origin[0]) * 2 / width - 1, (source_y + origin[1]) * 2 / height - 1
        grid = torch.stack([across, down], dim=-1).view(batch, height, width, 2)
        return F.grid_sample(images.float(), grid, align_corners=False).round_().to(images.dtype)
    column, row = (source_x + origin[0] - 0.5).round().long(), (source_y + origin[1] - 0.5).round().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixels = (row * width + column) * inside
    fetched = images.flatten(2).gather(2, pixels[:, None].expand(batch, channels, -1))
    return (fetched * inside[:, None]).view_as(images)


def reflect(positions: Tensor, size: int) -> Tensor:
    """Mirror positions beyond either edge back inside, without repeating the edge itself."""
    return (size - 1) - ((size - 1) - positions.abs()).abs()


# ── colour ────────────────────────────────────────────────────────────────────────────────────────


def change_brightness(images: Tensor, changes: Tensor) -> Tensor:
    """Scale brightness by 1 + change."""
    return blend(images, 0.0, _factors(changes))


def change_saturation(images: Tensor, changes: Tensor) -> Tensor:
    """Move away from (or towards) each pixel's grey."""
    return blend(images, grey_levels(images), _factors(changes))


def change_contrast(images: Tensor, changes: Tensor) -> Tensor:
    """Move away from (or towards) each image's mean grey."""
    return blend(images, grey_levels(images).mean(dim=(1, 2, 3), keepdim=True), _factors(changes))


def change_sharpness(images: Tensor, changes: Tensor) -> Tensor:
    """Move away from (or towards) the blurred image."""
    return blend(images, tv.adjust_sharpness(images, 0.0), _factors(changes))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits of each value."""
    dropped = 8 - bits.round().int()
    masks = (255 << dropped) & 255
    return images & masks.to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the values from a threshold (in [0, 255]) upwards."""
    return torch.where(images >= thresholds.view(-1, 1, 1, 1), 255 - images, images)


def stretch_contrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Stretch each channel to the full range; has no magnitude."""
    return tv.autocontrast(images)


def equalize(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Flatten each channel's histogram; has no magnitude."""
    return tv.equalize(images)


def _factors(changes: Tensor) -> Tensor:
    return (1.0 + changes).view(-1, 1, 1, 1)
