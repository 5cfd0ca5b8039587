"""AugMix: draws have the paper's distributions, and what is applied equals torchvision image by image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from harness.data.augment import augmix, auto_augment
from harness.data.augment.augmix import AugMix

UNLIKELY = 1e-5  # the seeds are fixed: a fair draw that fails here fails for ever
NAMES = ("Identity", *v2.AugMix._AUGMENTATION_SPACE)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Dictated(v2.AugMix):
    """torchvision's AugMix, with the draws of one image dictated."""

    def __init__(self, names: list[str], magnitudes: list[float], weights: Tensor, width: int) -> None:
        super().__init__(severity=1, mixture_width=width, chain_depth=len(names) // width)
        self._ops = iter(zip(names, magnitudes, strict=True))
        ends = weights[1:].sum()
        self._shares = iter([torch.stack([weights[0], ends])[None], weights[1:][None] / ends])

    def _get_random_item(self, dct: Any) -> tuple[str, tuple[Any, bool]]:
        name, magnitude = next(self._ops)
        return name, (lambda *_: torch.tensor([magnitude]), False)

    def _sample_dirichlet(self, params: Tensor) -> Tensor:
        return next(self._shares)


@pytest.mark.parametrize(("severity", "width", "depth"), [(3, 3, None), (10, 2, 4)])
def test_augmix_equals_torchvision_per_image(severity: int, width: int, depth: int | None) -> None:
    coarse = torch.rand(64, 3, 5, 6, generator=generator())
    photos = (torch.nn.functional.interpolate(coarse, (20, 24), mode="bilinear") * 255).to(torch.uint8)
    chains = AugMix(severity, width, depth).draw(64, generator())
    choices = augmix.augmix_ops(20, 24)
    levels = auto_augment.magnitudes_of(choices, chains.ops, chains.bins, chains.signs, augmix.NUM_BINS)
    result = augmix.mix_chains(photos, chains)
    gaps = []
    for row, (image, ours) in enumerate(zip(photos, result, strict=True)):
        names = [NAMES[index] for index in chains.ops[:, :, row].T.flatten().tolist()]  # chain after chain
        drawn = levels[:, :, row].T.flatten().tolist()
        wanted = [
            level / 255 if name == "Solarize" else round(level) if name == "Posterize" else level
            for name, level in zip(names, drawn, strict=True)
        ]
        expected = Dictated(names, wanted, chains.weights[:, row], width)(image)
        gaps.append((ours.int() - expected.int()).abs())
    # They cut off fractions, we round. An operation may amplify a difference of one: 4 bits to 16 levels.
    assert (torch.stack(gaps) > 2).float().mean() < 0.01


def test_the_magnitudes_are_torchvisions() -> None:
    ours, bins = augmix.augmix_ops(20, 24), torch.arange(10)
    for index, (name, (space, is_signed)) in enumerate(v2.AugMix._AUGMENTATION_SPACE.items(), start=1):
        assert ours[index].is_signed == is_signed
        expected = space(10, 20, 24)
        if expected is None:
            continue
        drawn = auto_augment.magnitudes_of(ours, torch.full_like(bins, index), bins, torch.ones(10), 10)
        scale = 255 if name == "Solarize" else 1
        drawn = drawn.round().int() if name == "Posterize" else drawn
        torch.testing.assert_close(drawn, expected * scale, atol=1e-4, rtol=1e-5)


def test_draws_are_fair_and_weights_follow_dirichlet() -> None:
    chains = AugMix(4, 3, None).draw(5000, generator())
    assert chains.ops.shape == (3, 3, 5000)
    first = chains.ops[0].flatten()  # a chain has one operation or more
    assert stats.chisquare((first - 1).bincount(minlength=13).numpy()).pvalue > UNLIKELY
    depths = (chains.ops != augmix.KEEP).sum(0).flatten() - 1
    assert stats.chisquare(depths.bincount(minlength=3).numpy()).pvalue > UNLIKELY
    assert stats.chisquare(chains.bins.flatten().bincount(minlength=4).numpy()).pvalue > UNLIKELY
    neighbours = first[:-1] * 14 + first[1:]
    assert stats.chisquare(neighbours.bincount()[neighbours.unique()].numpy()).pvalue > UNLIKELY
    own, ends = chains.weights[0], chains.weights[1:]
    torch.testing.assert_close(chains.weights.sum(0), torch.ones(5000))
    assert stats.kstest(own.numpy(), "uniform").pvalue > UNLIKELY
    for share in ends / (1 - own):  # of three, each follows Beta(1, 2)
        assert stats.kstest(share.numpy(), stats.beta(1, 2).cdf).pvalue > UNLIKELY
