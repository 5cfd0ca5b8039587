"""The finetuning policies: which tensors train, at what rate, and whether the frozen part can be cached.

A policy is one class here and one file in `configs/finetune/`. The schema finds every class below that has a
`kind`. `harness.models.freezing` gives a policy the names of a network's tensors, and freezes those that the
policy does not return.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

from pydantic import Field

from harness.config.base import Section, tags_of
from harness.errors import ModelError

LearningRateScale = Annotated[float, Field(gt=0.0, le=1.0)]  # backbone's lr ÷ head's lr


class TensorNames(Protocol):
    """The names of a network's parameters and buffers, as a policy sees them."""

    everything: frozenset[str]
    head: frozenset[str]
    norms: frozenset[str]  # of all normalisation layers

    def depth_groups(self) -> list[list[str]]:
        """Return the backbone's names, shallow to deep; ModelError where timm describes no depth."""
        ...


@dataclass(frozen=True)
class Trainable:
    """The names of the tensors that train, and the depth groups among them if the policy asks for groups."""

    names: frozenset[str]
    groups: Sequence[list[str]] = ()
    num_groups: int = 0  # of the backbone


class FinetunePolicy(Section):
    """The interface of a finetuning policy."""

    kind: str
    # The rank of a training step by cost among the policies. Of those that a sweep searches, the most
    # expensive one is measured when `sweep.slots=auto` is resolved.
    step_cost: ClassVar[int]
    freezes: ClassVar[bool] = True  # a policy that freezes refuses a network with random weights
    trains: ClassVar[str]  # what it trains, in words, for messages

    @property
    def backbone_rate(self) -> float:
        """The backbone's learning rate ÷ the head's."""
        return 1.0

    def trainable(self, network: TensorNames) -> Trainable:
        """Return which tensors train.

        Raises:
            ModelError: the network has no such tensors.
        """
        raise NotImplementedError


class FrozenBackbone(FinetunePolicy):
    """A policy whose frozen part runs before every part that trains, so its activations can be cached."""

    # Cache the activations of the frozen part in data.cache_dir if that does not change the training: without
    # augmentation, or with flips alone, of which both views are cached.
    cache_features: bool = True
    # With other augmentation: cache this many augmented views of each training image (the first is the image
    # itself), and use them in turn instead of new random ones in every epoch. None = new ones, no cache.
    feature_views: Annotated[int, Field(ge=1)] | None = None

    @property
    def trained_depth(self) -> int:
        """The number of depth groups that train; 0 if the head alone trains."""
        raise NotImplementedError


class LinearProbe(FrozenBackbone):
    """Train the classification head alone; everything below it is frozen."""

    kind: Literal["linear_probe"] = "linear_probe"
    step_cost = 0
    trains = "the head"

    @property
    def trained_depth(self) -> int:
        return 0

    def trainable(self, network: TensorNames) -> Trainable:
        return Trainable(network.head)


class Partial(FrozenBackbone):
    """Train the head and the last `trainable_groups` depth groups of the backbone."""

    kind: Literal["partial"] = "partial"
    trainable_groups: Annotated[int, Field(ge=1)] = 1
    backbone_lr_scale: LearningRateScale = 0.1
    step_cost = 1
    trains = "the head and {groups}"

    @property
    def trained_depth(self) -> int:
        return self.trainable_groups

    @property
    def backbone_rate(self) -> float:
        return self.backbone_lr_scale

    def trainable(self, network: TensorNames) -> Trainable:
        groups = network.depth_groups()
        if self.trainable_groups > len(groups):
            raise ModelError(
                f"finetune.trainable_groups={self.trainable_groups} is more than the model has: "
                f"use {len(groups)} (all of its depth groups) or fewer"
            )
        last = groups[len(groups) - self.trainable_groups :]
        return Trainable(network.head.union(*last), last, len(groups))


class Full(FinetunePolicy):
    """Train every parameter."""

    kind: Literal["full"] = "full"
    backbone_lr_scale: LearningRateScale = 1.0
    step_cost = 2
    freezes = False
    trains = "everything"

    @property
    def backbone_rate(self) -> float:
        return self.backbone_lr_scale

    def trainable(self, network: TensorNames) -> Trainable:
        return Trainable(network.everything)


def policies(base: type[FinetunePolicy] = FinetunePolicy) -> list[type[FinetunePolicy]]:
    """Return every policy's class, in the order of this file."""
    found = [policy for child in base.__subclasses__() for policy in (child, *policies(child))]
    return [policy for policy in found if tags_of(policy)]
