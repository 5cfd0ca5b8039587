"""Resizes, crops and normalises images, as the first layer of every classifier.

`build_model` puts :class:`Preprocess` in front of every network, so that training and every exported model
preprocess alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Preprocess(nn.Module):
    """Resizes and normalises on the device, as the first layer of every classifier and every export.

    The shorter side becomes `image_size`, then the centre is cropped. Images that have this size already are
    not resized. Resizing always uses the antialiased kernels. They resize as Pillow does, with which images
    were prepared for the pretrained weights: without aliasing when shrinking. Enlarging takes no longer.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bilinear",
    ) -> None:
        """Describe the images that the network expects.

        Args:
            image_size: height and width in pixels.
            mean: per channel, of pixels in [0, 1].
            std: per channel, of pixels in [0, 1].
            interpolation: "bilinear" or "bicubic".
        """
        super().__init__()
        self.image_size = image_size
        self.interpolation = interpolation
        # Not persistent: they are configuration, not weights. A checkpoint holds them in its own section.
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)).view(1, -1, 1, 1), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return normalised float32 images of `image_size`, in the memory format of the input.

        Args:
            images_BCHW: uint8, or float in [0, 1]; any height and width.
        """
        height, width = images_BCHW.shape[-2:]
        white = 255.0 if images_BCHW.dtype == torch.uint8 else 1.0
        if height == width == self.image_size:
            return self._normalise(images_BCHW, white)
        channels_last = images_BCHW.is_contiguous(memory_format=torch.channels_last)
        # The antialiased kernels are twice as fast on contiguous planes. Rearranged before the conversion to
        # float32, while a pixel is one byte.
        planes_BCHW = images_BCHW.contiguous()
        # Resizing is linear and its weights sum to one, so it commutes with normalising, which is done where
        # there are fewer pixels.
        if height * width <= self.image_size**2:
            resized_BCHW = self._resize(self._normalise(planes_BCHW, white))
        else:
            resized_BCHW = self._normalise(self._resize(planes_BCHW.float()), white)
        return resized_BCHW.contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )

    def extra_repr(self) -> str:
        mean, std = self.mean.flatten().tolist(), self.std.flatten().tolist()
        return f"image_size={self.image_size}, {self.interpolation}, mean={mean}, std={std}"

    def _normalise(self, images_BCHW: Tensor, white: float) -> Tensor:
        """Subtract the mean from pixels in [0, `white`] and divide by the deviation, in one pass."""
        scale = 1 / self.std
        return torch.addcmul(-self.mean * scale, images_BCHW.float(), scale / white)

    def _resize(self, images_BCHW: Tensor) -> Tensor:
        size = self.image_size
        height, width = images_BCHW.shape[-2:]
        shorter = min(height, width)
        resized_BCHW = F.interpolate(
            images_BCHW,
            size=(round(height * size / shorter), round(width * size / shorter)),
            mode=self.interpolation,
            align_corners=False,
            antialias=True,
        )
        top, left = (resized_BCHW.shape[-2] - size) // 2, (resized_BCHW.shape[-1] - size) // 2
        return resized_BCHW[..., top : top + size, left : left + size]
