"""The CNN of the CIFAR-10 speed record: a whitening layer and three groups of 3x3 convolutions.

`scratch.py` builds it as `speed_cnn`. Before the first step, `harness.training.train` calls
`init_from_images`, which computes the whitening layer from training images.

Source: K. Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, https://arxiv.org/abs/2404.00498, as of
https://github.com/KellerJordan/cifar10-airbench (airbench94_muon.py).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WHITENING_KERNEL = 2  # height and width in pixels
WHITENING_EPS = 5e-4  # added to each variance, so that none is zero: filters are divided by its root
GROUP_WIDTHS = (64, 256, 256)


class SpeedNet(nn.Module):
    """A whitening layer, three groups that each halve the map, global max pooling, and a linear head.

    `init_from_images` must be called before the first step. Its result is a buffer, which checkpoints hold.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_features = GROUP_WIDTHS[-1]
        self.num_classes = num_classes
        self.whiten = Whitening()
        widths = (self.whiten.num_out, *GROUP_WIDTHS)
        self.groups = nn.Sequential(*(ConvGroup(num_in, num_out) for num_in, num_out in pairwise(widths)))
        self.head = nn.Linear(self.num_features, num_classes, bias=False)
        nn.init.normal_(self.head.weight)

    def init_from_images(self, images_BCHW: Tensor) -> None:
        """Compute the frozen first layer from normalised training images; a few thousand suffice."""
        self.whiten.init_from_images(images_BCHW)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images_BCHW))

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """Return the head's input, (B, num_features)."""
        return self.groups(F.gelu(self.whiten(images_BCHW))).amax((2, 3))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits, or with `pre_logits` the features as they are."""
        return features if pre_logits else self.head(features) / self.num_features

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's patterns of depth groups: the whitening, then every group of convolutions."""
        return {"stem": r"^whiten\.", "blocks": r"^groups\.(\d+)"}


class Whitening(nn.Module):
    """A 2x2 convolution whose outputs are decorrelated and of unit variance, each with both signs.

    Its filters are computed from images and kept as a buffer; only its bias is learnt.
    """

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        dim = 3 * WHITENING_KERNEL**2
        self.num_out = 2 * dim
        identity = torch.eye(dim).view(dim, 3, WHITENING_KERNEL, WHITENING_KERNEL)
        self.register_buffer("weight", torch.cat([identity, -identity]))
        self.bias = nn.Parameter(torch.empty(self.num_out).uniform_(-(dim**-0.5), dim**-0.5))

    @torch.no_grad()
    def init_from_images(self, images_BCHW: Tensor) -> None:
        covariance_DD = torch.stack([_patch_covariance(images) for images in images_BCHW.split(100)]).mean(0)
        variances_D, directions_DD = torch.linalg.eigh(covariance_DD)  # directions are columns
        filters_DD = directions_DD.T / (variances_D[:, None] + WHITENING_EPS).sqrt()
        self.weight.copy_(torch.cat([filters_DD, -filters_DD]).view_as(self.weight))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return F.conv2d(images_BCHW, self.weight, self.bias)


def _patch_covariance(images_BCHW: Tensor) -> Tensor:
    patches_BDL = F.unfold(images_BCHW.contiguous(), WHITENING_KERNEL)
    patches_DN = patches_BDL.transpose(0, 1).flatten(1)
    return patches_DN @ patches_DN.T / patches_DN.shape[1]


class ConvGroup(nn.Sequential):
    """Convolution, pooling, norm, GELU; convolution, norm, GELU."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(
            DiracConv(num_in, num_out),
            nn.MaxPool2d(2),
            BiasNorm(num_out),
            nn.GELU(),
            DiracConv(num_out, num_out),
            BiasNorm(num_out),
            nn.GELU(),
        )


class DiracConv(nn.Conv2d):
    """A 3x3 convolution whose first `num_in` outputs are initialised to copy its inputs."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, kernel_size=3, padding=1, bias=False)
        with torch.no_grad():
            nn.init.dirac_(self.weight[:num_in])


class BiasNorm(nn.BatchNorm2d):
    """Batch norm whose bias is learnt and whose scales are a buffer of ones.

    The publication has a momentum of 0.4 for batches of 2,000 images. For batches of 500, a momentum of 0.1
    averages over as many images.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=1e-12, momentum=0.1)
        del self.weight
        self.register_buffer("weight", torch.ones(num_features))
