"""Test-time augmentation: averages a network's logits over several views of each image.

`module.py` (validation) and `evaluate.py` call `predict_logits`; `evaluation.tta` in the configuration names
the views.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from harness.data.augment.transforms import crop_and_flip

Tta = Literal["none", "flip", "flip_shift"]
SHIFTS = (-1, 1)  # pixels, up and left or down and right


def predict_logits(
    network: Callable[[Tensor], Tensor], images_BCHW: Tensor, tta: Tta
) -> tuple[Tensor, Tensor]:
    """Return logits (B, K) averaged over the views that `tta` names, and those of the images alone.

    "flip" averages the image and its mirror image. "flip_shift" gives half of the weight to these two, the
    other half to both of them shifted by a pixel up and left, and down and right, with the border reflected.
    Source: K. Jordan, https://arxiv.org/abs/2404.00498, section 3.5 (there "multi-crop").

    Args:
        images_BCHW: uint8, or float in [0, 1].
    """
    plain = network(images_BCHW)
    if tta == "none":
        return plain, plain
    centred = (plain + network(_view(images_BCHW, 0, mirrored=True))) / 2
    if tta == "flip":
        return centred, plain
    shifted = [network(_view(images_BCHW, shift, mirrored)) for shift in SHIFTS for mirrored in (False, True)]
    return (centred + torch.stack(shifted).mean(0)) / 2, plain


def _view(images_BCHW: Tensor, shift: int, mirrored: bool) -> Tensor:
    count, device = len(images_BCHW), images_BCHW.device
    offsets = torch.full((count, 2), shift, device=device)
    return crop_and_flip(images_BCHW, offsets, torch.full((count,), mirrored, device=device))
