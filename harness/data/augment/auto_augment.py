"""TrivialAugment and RandAugment, with operations and magnitudes drawn for each image of a batch.

The operations and their ranges of magnitudes are those of ``torchvision.transforms.v2``, which draws once
per batch. Images are grouped by operation; an operation takes a magnitude per image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.data.augment import ops
from harness.data.sharding import Shard

NUM_BINS = 31  # magnitudes 0 to 30

Operation = Callable[[Tensor, Tensor], Tensor]  # uint8 (N, 3, H, W), float (N,) -> uint8 (N, 3, H, W)


@dataclass(frozen=True)
class PolicyOp:
    """One operation that a policy may draw, and its range of magnitudes.

    Args:
        apply: The operation, from `ops.py`.
        weakest: Its magnitude at bin 0.
        strongest: Its magnitude at the last bin; linear in between.
        is_signed: Whether the magnitude is negated half of the time.
    """

    apply: Operation
    weakest: float = 0.0
    strongest: float = 0.0
    is_signed: bool = False


class TrivialAugment:
    """One operation per image, of any magnitude.

    Source: Müller and Hutter, arXiv:2103.10158 (the "wide" space).
    """

    def __call__(self, images_BCHW: Tensor, generator: torch.Generator, shard: Shard | None = None) -> Tensor:
        """Augment uint8 images, which are a shard of a batch; `generator` is on their device."""
        choices, shard = trivial_augment_ops(), shard or Shard.whole(len(images_BCHW))
        drawn, signs = draw_ops(shard.total, len(choices), generator)
        bins = torch.randint(NUM_BINS, (shard.total,), generator=generator, device=generator.device)
        magnitudes = magnitudes_of(choices, drawn, bins, signs)
        return apply_ops(images_BCHW, choices, shard.select(drawn), shard.select(magnitudes))


class RandAugment:
    """Several operations per image, one after the other, all of the same magnitude.

    Source: Cubuk et al., arXiv:1909.13719.
    """

    def __init__(self, num_ops: int, magnitude: int) -> None:
        self.num_ops = num_ops
        self.magnitude = magnitude

    def __call__(self, images_BCHW: Tensor, generator: torch.Generator, shard: Shard | None = None) -> Tensor:
        """Augment uint8 images, which are a shard of a batch; `generator` is on their device."""
        choices, shard = rand_augment_ops(*images_BCHW.shape[-2:]), shard or Shard.whole(len(images_BCHW))
        for _ in range(self.num_ops):
            drawn, signs = draw_ops(shard.total, len(choices), generator)
            magnitudes = magnitudes_of(choices, drawn, torch.full_like(drawn, self.magnitude), signs)
            images_BCHW = apply_ops(images_BCHW, choices, shard.select(drawn), shard.select(magnitudes))
        return images_BCHW


# ── drawing and placing ───────────────────────────────────────────────────────────────────────────


def draw_ops(batch: int, num_choices: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw an operation's index and a sign for each image, int64 (B,) and float (B,) of -1 and 1."""
    drawn = torch.randint(num_choices, (batch,), generator=generator, device=generator.device)
    signs = torch.randint(2, (batch,), generator=generator, device=generator.device) * 2.0 - 1.0
    return drawn, signs


def magnitudes_of(
    choices: tuple[PolicyOp, ...], ops_B: Tensor, bins_B: Tensor, signs_B: Tensor, num_bins: int = NUM_BINS
) -> Tensor:
    """Turn drawn bins into magnitudes in the units of the drawn operations, float, of the bins' shape."""
    table = torch.tensor([(c.weakest, c.strongest, c.is_signed) for c in choices], device=ops_B.device)
    weakest, strongest, is_signed = table[ops_B].unbind(dim=-1)
    size = weakest + (strongest - weakest) * (bins_B / (num_bins - 1))
    return torch.where(is_signed.bool(), size * signs_B, size)


def apply_ops(
    images_BCHW: Tensor, choices: tuple[PolicyOp, ...], ops_B: Tensor, magnitudes_B: Tensor
) -> Tensor:
    """Apply to each image the operation drawn for it."""
    result = images_BCHW.clone(memory_format=torch.preserve_format)
    ops_on_host = ops_B.cpu()  # one synchronisation with the device, instead of one per operation
    for index in ops_on_host.unique().tolist():
        members = (ops_on_host == index).nonzero().squeeze(1).to(images_BCHW.device)
        result[members] = choices[index].apply(images_BCHW[members], magnitudes_B[members])
    return result


def trivial_augment_ops() -> tuple[PolicyOp, ...]:
    """Return the operations of TrivialAugment's wide space."""
    geometric = (0.99, 32.0, 32.0, 135.0)
    return _choices(geometric, enhance=0.99, fewest_bits=2)


def rand_augment_ops(height: int, width: int) -> tuple[PolicyOp, ...]:
    """Return RandAugment's operations for images of this size."""
    geometric = (0.3, 150.0 / 331.0 * width, 150.0 / 331.0 * height, 30.0)
    return _choices(geometric, enhance=0.9, fewest_bits=4)


def _choices(
    geometric: tuple[float, float, float, float], enhance: float, fewest_bits: int
) -> tuple[PolicyOp, ...]:
    shear, translate_x, translate_y, rotate = geometric
    return (
        PolicyOp(ops.keep),
        PolicyOp(ops.shear_x, 0.0, shear, is_signed=True),
        PolicyOp(ops.shear_y, 0.0, shear, is_signed=True),
        PolicyOp(ops.translate_x, 0.0, translate_x, is_signed=True),
        PolicyOp(ops.translate_y, 0.0, translate_y, is_signed=True),
        PolicyOp(ops.rotate, 0.0, rotate, is_signed=True),
        PolicyOp(ops.change_brightness, 0.0, enhance, is_signed=True),
        PolicyOp(ops.change_saturation, 0.0, enhance, is_signed=True),
        PolicyOp(ops.change_contrast, 0.0, enhance, is_signed=True),
        PolicyOp(ops.change_sharpness, 0.0, enhance, is_signed=True),
        PolicyOp(ops.posterize, 8.0, fewest_bits),
        PolicyOp(ops.solarize, 255.0, 0.0),
        PolicyOp(ops.stretch_contrast),
        PolicyOp(ops.equalize),
    )
