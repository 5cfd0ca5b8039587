"""The section `loss`: what a training step minimises, and the penalties on the weights.

`schema.py` puts it into a run; `harness.training.optimisation.losses` computes it.
`optim.label_smoothing` acts on every kind.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config.base import Section


class BaseLoss(Section):
    """What every loss has. All of them take soft targets, as mixup and cutmix make them."""

    # balanced: an image counts with the inverse of its class's share of the training images, so that every
    # class counts equally; the mean weight of a training image is 1. Of multi-label images, a yes counts as
    # much as all noes of its label together.
    class_weights: Literal["none", "balanced"] = "none"
    # Added to the loss, of all weights that train, but of no norms and biases: this × the sum of their
    # magnitudes ...
    l1: Annotated[float, Field(ge=0.0)] = 0.0
    l2: Annotated[float, Field(ge=0.0)] = 0.0  # ... and this × the sum of their squares

    @property
    def adjustment(self) -> float:
        """The logit adjustment; 0 of losses that have none."""
        return 0.0


class SoftmaxLoss(BaseLoss):
    """What losses of the softmax have."""

    # Logit adjustment (Menon et al., 2021, https://arxiv.org/abs/2007.07314): this × the logarithm of each
    # class's share of the training images is added to its logit in the loss alone, so that the logits favour
    # no class for being frequent. 1 is for the balanced error; 0 is off.
    logit_adjustment: Annotated[float, Field(ge=0.0)] = 0.0

    @property
    def adjustment(self) -> float:
        return self.logit_adjustment


class CrossEntropy(SoftmaxLoss):
    """The cross entropy of the softmax."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class BinaryCrossEntropy(BaseLoss):
    """The binary cross entropy of each class's sigmoid, one class against the rest (timm's).

    Source: https://arxiv.org/abs/2110.00476
    """

    kind: Literal["binary"] = "binary"
    target_threshold: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None  # soft targets above it become 1
    sum_classes: bool = False  # the sum over the classes, not their mean


class Focal(SoftmaxLoss):
    """Cross entropy of the softmax, each class's part × (1 - p)^gamma: less for what is right already.

    Of multi-label images, that of each label's sigmoid, as in the paper.

    Source: https://arxiv.org/abs/1708.02002
    """

    kind: Literal["focal"] = "focal"
    gamma: Annotated[float, Field(ge=0.0)] = 2.0


LossConfig = Annotated[CrossEntropy | BinaryCrossEntropy | Focal, Field(discriminator="kind")]
