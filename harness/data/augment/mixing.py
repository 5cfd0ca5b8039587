"""Mixup and cutmix: each image of a batch is blended with, or partly covered by, another one.

The labels become class probabilities in the same proportion. Mixing comes after all other augmentation. The
random numbers, a few per image, are drawn on the CPU, so they are the same on every device; some devices
cannot draw from a Beta distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.config.schema import AugmentConfig
from harness.data.augment.transforms import box_mask


@dataclass(frozen=True)
class MixDraws:
    """The draws for one batch: the partner of each image, and how they are mixed.

    Args:
        partners: int64 (B,), a permutation: image i is mixed with image `partners[i]`.
        weights: float32 (B,), the weight of image i itself outside of its box; inside of the box all pixels
            are the partner's.
        boxes: int64 (B, 4) of top, left, bottom, right; without area for images that get mixup.
    """

    partners: Tensor
    weights: Tensor
    boxes: Tensor

    def to(self, device: torch.device) -> MixDraws:
        return MixDraws(self.partners.to(device), self.weights.to(device), self.boxes.to(device))


class BatchMix:
    """Mixup, cutmix, or for each image either of them with equal chances, as `AugmentConfig` says.

    Source: mixup, Zhang et al., arXiv:1710.09412; cutmix, Yun et al., arXiv:1905.04899. Both draw once per
    batch in their authors' code; here every image has its own draw.
    """

    def __init__(self, config: AugmentConfig, num_classes: int) -> None:
        self.config = config
        self.num_classes = num_classes

    @property
    def is_on(self) -> bool:
        return bool(self.config.mixup_alpha or self.config.cutmix_alpha)

    def is_off(self, epoch: int) -> bool:
        """Tell whether the images of this epoch (from 0) are not mixed."""
        off = self.config.mix_off_epoch
        return not self.is_on or (off is not None and epoch >= off)

    def __call__(
        self, images_BCHW: Tensor, labels: Tensor, seed: int, epoch: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images_BCHW: uint8, or float in [0, 1].
            labels: int64 (B,); of multi-label images 0 and 1, (B, K).
            seed: Decides all draws.
            epoch: From 0; mixing ends with `mix_off_epoch`.

        Returns:
            Images and class probabilities, float32 (B, K). The images stay uint8 under cutmix alone; mixup
            makes them float in [0, 1], so nothing is rounded. The input itself if none is on, or no longer.
        """
        config = self.config
        if self.is_off(epoch):
            return images_BCHW, labels
        height, width = images_BCHW.shape[-2:]
        draws = draw_mix(len(images_BCHW), (height, width), config, np.random.default_rng(seed))
        draws = draws.to(images_BCHW.device)
        apply = blend_images if config.mixup_alpha else paste_boxes
        return apply(images_BCHW, draws), mix_labels(labels, draws, self.num_classes, height * width)


def draw_mix(batch: int, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> MixDraws:
    """Draw partners, weights and boxes for a batch of images of (height, width) pixels.

    As in the paper, a cutmix box has the image's shape and 1 - λ of its area before it is clipped.
    """
    chance = 0.5 if config.mixup_alpha and config.cutmix_alpha else float(config.cutmix_alpha > 0)
    is_cut = rng.random(batch) < chance
    alphas = np.where(is_cut, config.cutmix_alpha, config.mixup_alpha)
    lambdas = rng.beta(alphas, alphas)
    halves = (0.5 * np.sqrt(1.0 - lambdas)[:, None] * size).astype(np.int64) * is_cut[:, None]
    centres = rng.integers(0, size, (batch, 2))
    boxes = np.concatenate([np.maximum(centres - halves, 0), np.minimum(centres + halves, size)], axis=1)
    weights = np.where(is_cut, 1.0, lambdas).astype(np.float32)
    return MixDraws(*(torch.from_numpy(drawn) for drawn in (rng.permutation(batch), weights, boxes)))


def blend_images(images_BCHW: Tensor, draws: MixDraws) -> Tensor:
    """Return weighted means with the partners, and the partners alone in the boxes; float in [0, 1]."""
    own = images_BCHW if images_BCHW.is_floating_point() else images_BCHW.float() / 255
    weights_B1HW = draws.weights[:, None, None, None] * ~box_mask(images_BCHW, draws.boxes)
    return torch.lerp(_of_partners(own, draws), own, weights_B1HW)


def paste_boxes(images_BCHW: Tensor, draws: MixDraws) -> Tensor:
    """Return the images with their boxes filled from their partners, in their own type."""
    return torch.where(box_mask(images_BCHW, draws.boxes), _of_partners(images_BCHW, draws), images_BCHW)


def _of_partners(images_BCHW: Tensor, draws: MixDraws) -> Tensor:
    return images_BCHW[draws.partners]  # index_select would lose channels_last


def mix_labels(labels: Tensor, draws: MixDraws, num_classes: int, num_pixels: int) -> Tensor:
    """Return class probabilities, float32 (B, K): each image's label has its share of the pixels' weight.

    Args:
        labels: int64 (B,); of multi-label images 0 and 1, (B, K), and the shares are those of each label.
    """
    top, left, bottom, right = draws.boxes.unbind(dim=1)
    shares_B = draws.weights * (1 - (bottom - top) * (right - left) / num_pixels)
    own_BK = (F.one_hot(labels, num_classes) if labels.ndim == 1 else labels).float()
    return torch.lerp(own_BK[draws.partners], own_BK, shares_B[:, None])
