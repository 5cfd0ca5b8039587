"""AugMix: each image is mixed with copies of itself that went through short chains of operations.

`transforms.py` calls it as one of the policies. Operations, magnitudes and mixing are those of
``torchvision.transforms.v2.AugMix`` with all operations, which draws once per batch; here every image has its
own draws. The operations are in `ops.py`, and are applied by `auto_augment.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from harness.data.augment import ops
from harness.data.augment.auto_augment import PolicyOp, apply_ops, magnitudes_of
from harness.data.sharding import Shard

NUM_BINS = 10  # magnitudes 0 to 9, of which the lowest `severity` are drawn
MAX_DEPTH = 3  # operations in a chain, where its depth is drawn
KEEP = 0  # the operation that a chain takes after its own have ended


@dataclass(frozen=True)
class Chains:
    """The draws for B images, each with W chains of at most D operations.

    Args:
        ops: int64 (D, W, B), positions in `augmix_ops`; `KEEP` beyond the end of a chain.
        bins: int64 (D, W, B), the magnitudes' bins.
        signs: float (D, W, B), -1 or 1.
        weights: float (1 + W, B), of the image itself and of its chains' ends; they sum to 1 over dim 0.
    """

    ops: Tensor
    bins: Tensor
    signs: Tensor
    weights: Tensor

    def of(self, shard: Shard) -> Chains:
        """Return the draws of a shard."""
        return Chains(*(shard.select(drawn, dim=-1) for drawn in vars(self).values()))


class AugMix:
    """Several chains of one to three operations per image, mixed with the image itself.

    Args:
        severity: The strongest bin that is drawn is `severity` - 1, of `NUM_BINS`.
        width: The number of chains.
        depth: The operations in each chain; None: 1, 2 or 3, drawn for each chain.

    Source: Hendrycks et al., arXiv:1912.02781, without its loss, which compares several views of an image.
    """

    def __init__(self, severity: int, width: int, depth: int | None) -> None:
        self.severity = severity
        self.width = width
        self.depth = depth

    def __call__(self, images_BCHW: Tensor, generator: torch.Generator, shard: Shard | None = None) -> Tensor:
        """Augment uint8 images, which are a shard of a batch; `generator` is on their device."""
        shard = shard or Shard.whole(len(images_BCHW))
        return mix_chains(images_BCHW, self.draw(shard.total, generator).of(shard))

    def draw(self, batch: int, generator: torch.Generator) -> Chains:
        """Draw the chains and weights of a whole batch.

        The weights of the chains follow a Dirichlet distribution, the share of the image itself a uniform
        one: Beta and Dirichlet with the α of 1 that paper and torchvision use.
        """
        device, longest = generator.device, self.depth or MAX_DEPTH
        shape = longest, self.width, batch
        drawn = torch.randint(1, len(augmix_ops(1, 1)), shape, generator=generator, device=device)
        if self.depth is None:
            depths = torch.randint(1, longest + 1, shape[1:], generator=generator, device=device)
            has_ended = torch.arange(longest, device=device)[:, None, None] >= depths
            drawn = drawn.masked_fill(has_ended, KEEP)
        bins = torch.randint(self.severity, shape, generator=generator, device=device)
        signs = torch.randint(2, shape, generator=generator, device=device) * 2.0 - 1.0
        # Exponential numbers divided by their sum are a draw from Dirichlet(1, …, 1).
        shares = torch.empty(shape[1:], device=device).exponential_(generator=generator)
        own = torch.rand(1, batch, generator=generator, device=device)
        return Chains(drawn, bins, signs, torch.cat([own, (1 - own) * shares / shares.sum(0)]))


def mix_chains(images_BCHW: Tensor, chains: Chains) -> Tensor:
    """Run each image through its chains, and return the weighted means, uint8 (B, 3, H, W)."""
    batch, (_, width, _) = len(images_BCHW), chains.ops.shape
    choices = augmix_ops(*images_BCHW.shape[-2:])
    magnitudes = magnitudes_of(choices, chains.ops, chains.bins, chains.signs, NUM_BINS)
    ends = images_BCHW.repeat(width, 1, 1, 1)  # all chains at once: few, large groups of equal operations
    for drawn, levels in zip(chains.ops, magnitudes, strict=True):
        ends = apply_ops(ends, choices, drawn.flatten(), levels.flatten())
    weights = chains.weights[:, :, None, None, None]
    mixed = images_BCHW * weights[0]
    for of_chain, weight in zip(ends.split(batch), weights[1:], strict=True):
        mixed.addcmul_(of_chain, weight)
    return mixed.round_().to(images_BCHW.dtype)


def augmix_ops(height: int, width: int) -> tuple[PolicyOp, ...]:
    """Return AugMix's operations for images of this size, after `KEEP`."""
    return (
        PolicyOp(ops.keep),
        PolicyOp(partial(ops.shear_x, bilinear=True), 0.0, 0.3, is_signed=True),
        PolicyOp(partial(ops.shear_y, bilinear=True), 0.0, 0.3, is_signed=True),
        PolicyOp(ops.translate_x, 0.0, width / 3.0, is_signed=True),  # by whole pixels
        PolicyOp(ops.translate_y, 0.0, height / 3.0, is_signed=True),
        PolicyOp(partial(ops.rotate, bilinear=True), 0.0, 30.0, is_signed=True),
        PolicyOp(ops.posterize, 4.0, 0.0),
        PolicyOp(ops.solarize, 255.0, 0.0),
        PolicyOp(ops.stretch_contrast),
        PolicyOp(ops.equalize),
        PolicyOp(ops.change_brightness, 0.0, 0.9, is_signed=True),
        PolicyOp(ops.change_saturation, 0.0, 0.9, is_signed=True),
        PolicyOp(ops.change_contrast, 0.0, 0.9, is_signed=True),
        PolicyOp(ops.change_sharpness, 0.0, 0.9, is_signed=True),
    )
