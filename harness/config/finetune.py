"""The finetuning policies: which tensors train, from when on, at what rate, and what of it can be cached.

A policy is one class here and one file in `configs/finetune/`. The schema finds every class below that has a
`kind`. `harness.models.freezing` gives a policy the names of a network's tensors, and freezes those that the
policy does not return.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, Self

from pydantic import Field, field_validator, model_validator

from harness.config.base import Section, tags_of
from harness.errors import ConfigError, ModelError

LearningRateScale = Annotated[float, Field(gt=0.0, le=1.0)]  # backbone's lr ÷ head's lr
# Which batch norms take statistics of the batch and follow them with running ones. auto: those that train;
# frozen: none; adapt: all, in frozen parts too; recalibrate: as auto, but before the first step all
# statistics are measured anew on training images.
BatchNormPolicy = Literal["auto", "frozen", "adapt", "recalibrate"]


class TensorNames(Protocol):
    """The names of a network's parameters and buffers, as a policy sees them."""

    everything: frozenset[str]
    head: frozenset[str]
    norms: frozenset[str]  # of all normalisation layers
    biases: frozenset[str]  # what is added to a layer's output; one for each channel
    adapters: frozenset[str]  # of `finetune=lora`, which are put into the network before it is asked

    def layers_above(self) -> dict[str, int]:
        """Return how many layers lie above each tensor, as timm counts them for layer-wise decay; head: 0."""
        ...

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
    batch_norm: BatchNormPolicy = "auto"
    # The rank of a training step by cost among the policies. Of those that a sweep searches, the most
    # expensive one is measured when `sweep.slots=auto` is resolved.
    step_cost: ClassVar[int]
    freezes: ClassVar[bool] = True  # a policy that freezes refuses a network with random weights
    thaws: ClassVar[bool] = False  # more trains in later epochs: see `joins`
    trains: ClassVar[str]  # see `in_words`, which a policy overrides whose words depend on settings

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

    def rates(self, network: TensorNames) -> Mapping[str, float]:
        """Return tensors' learning rates ÷ the head's; those of the backbone that are missing have one rate.

        That one is `backbone_rate`.
        """
        return {}

    def joins(self, network: TensorNames) -> Mapping[str, int]:
        """Return the epoch (from 0) in which each tensor begins to train, of those that do so later.

        They are some of those that `trainable` returns. They are in the optimiser from the beginning, without
        gradients: nothing in a checkpoint or in a resumed run depends on when they join.
        """
        return {}

    @property
    def join_warmup(self) -> float:
        """The epochs in which the learning rate of tensors that join rises to that of the schedule."""
        return 0.0

    @property
    def phases(self) -> list[tuple[int, float]]:
        """The first epoch of each part of a run over which the schedule is laid out anew, and its scale."""
        return []

    def check_length(self, max_epochs: int, warmup_epochs: float) -> None:
        """Refuse a policy that does not fit into a run.

        Args:
            warmup_epochs: of the run's schedule.

        Raises:
            ValueError: it does not fit.
        """

    def check_installed(self) -> None:
        """Refuse a policy that needs a package which is not installed.

        It is not part of validation: a run that is recorded can be read, and its model used, without it.

        Raises:
            ConfigError: the package is not installed.
        """

    def in_words(self) -> str:
        """Return what it trains, for messages.

        {groups} stands for the depth groups, {adapted} for the number of layers with adapters.
        """
        return self.trains

    @property
    def num_new_groups(self) -> int:
        """The number of last depth groups that start from random weights, although the rest is pretrained."""
        return 0


class RatesByDepth(FinetunePolicy):
    """A policy whose learning rates may fall with the depth below the head."""

    backbone_lr_scale: LearningRateScale
    # The rate of a layer ÷ that of the layer above it. Counted in timm's layers (of a ViT, its blocks; of a
    # ResNet, likewise), or in depth groups: 0.385 of groups are the discriminative rates of ULMFiT (1 / 2.6).
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    layer_decay_by: Literal["layer", "group"] = "layer"

    @property
    def backbone_rate(self) -> float:
        return self.backbone_lr_scale

    def rates(self, network: TensorNames) -> Mapping[str, float]:
        if self.layer_decay == 1.0:
            return {}
        if self.layer_decay_by == "layer":
            above: Mapping[str, int] = network.layers_above()
        else:
            groups = network.depth_groups()
            above = {name: len(groups) - i for i, group in enumerate(groups) for name in group}
        return {
            name: self.backbone_lr_scale * self.layer_decay**count
            for name, count in above.items()
            if name not in network.head
        }


class FrozenBackbone(FinetunePolicy):
    """A policy whose frozen part runs before every part that trains, so its activations can be cached."""

    # Cache the activations of the frozen part in data.cache_dir if that does not change the training: without
    # augmentation, or with flips alone, of which both views are cached.
    cache_features: bool = True
    # With other augmentation: cache this many augmented views of each training image (the first is the image
    # itself), and use them in turn instead of new random ones in every epoch. None = new ones, no cache.
    feature_views: Annotated[int, Field(ge=1)] | None = None

    @property
    def trained_depth(self) -> int | None:
        """The number of depth groups that train in the end; 0: the head alone; None: nothing stays frozen."""
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


class Partial(FrozenBackbone, RatesByDepth):
    """Train the head and the last `trainable_groups` depth groups of the backbone."""

    kind: Literal["partial"] = "partial"
    trainable_groups: Annotated[int, Field(ge=1)] = 1
    backbone_lr_scale: LearningRateScale = 0.1
    reinit_groups: Annotated[int, Field(ge=0)] = 0  # of them, the last so many start from random weights
    step_cost = 1
    trains = "the head and {groups}"

    @model_validator(mode="after")
    def _new_groups_train(self) -> Self:
        if self.reinit_groups > self.trainable_groups:
            raise ValueError(
                f"reinit_groups={self.reinit_groups} would freeze random weights: "
                f"use {self.trainable_groups} (trainable_groups) or fewer"
            )
        return self

    @property
    def trained_depth(self) -> int:
        return self.trainable_groups

    @property
    def num_new_groups(self) -> int:
        return self.reinit_groups

    def trainable(self, network: TensorNames) -> Trainable:
        return _head_and_last_groups(network, "trainable_groups", self.trainable_groups)


class NormsOnly(RatesByDepth):
    """Train the head and all normalisation layers.

    Source: Frankle, Schwab & Morcos (2021), "Training BatchNorm and Only BatchNorm", there without the head.
    """

    kind: Literal["norms_only"] = "norms_only"
    backbone_lr_scale: LearningRateScale = 1.0
    step_cost = 2
    trains = "the head and the normalisation layers"

    def trainable(self, network: TensorNames) -> Trainable:
        if not network.norms - network.head:
            raise ModelError(
                "finetune=norms_only: the model has no normalisation layers; use finetune=bitfit"
            )
        return Trainable(network.head | network.norms)


class BitFit(RatesByDepth):
    """Train the head and all biases, of normalisation layers too.

    Source: Ben Zaken, Goldberg & Ravfogel (2022), "BitFit", https://arxiv.org/abs/2106.10199
    """

    kind: Literal["bitfit"] = "bitfit"
    backbone_lr_scale: LearningRateScale = 1.0
    step_cost = 2
    trains = "the head and the biases"

    def trainable(self, network: TensorNames) -> Trainable:
        if not network.biases - network.head:
            raise ModelError(
                "finetune=bitfit: the model has no biases below its head; use finetune=norms_only"
            )
        return Trainable(network.head | network.biases)


class Lora(RatesByDepth):
    """Train the head, and beside each layer's frozen weight W a product of two small matrices.

    The layer computes with W + alpha / rank · B A, where A has `rank` rows and B as many columns. B begins at
    zero. The library peft puts A and B into the network (`harness.models.lora`).

    Source: Hu et al. (2022), "LoRA", https://arxiv.org/abs/2106.09685
    """

    kind: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # of what enters A
    # Which layers: a regular expression that is searched for in their names. None: all linear layers and all
    # convolutions in one group, below the head.
    layers: Annotated[str, Field(min_length=1)] | None = None
    backbone_lr_scale: LearningRateScale = 1.0  # of the adapters
    step_cost = 3

    @field_validator("layers")
    @classmethod
    def _layers_is_a_pattern(cls, layers: str | None) -> str | None:
        try:
            re.compile(layers or "")
        except re.error as error:
            raise ValueError(f"{layers!r} is no regular expression ({error})") from None
        return layers

    @property
    def scaling(self) -> float:
        """The factor of the product B A."""
        return self.alpha / self.rank

    def check_installed(self) -> None:
        if importlib.util.find_spec("peft") is None:
            raise ConfigError(
                "finetune=lora needs the package peft: make setup-lora (or pip install 'harness[lora]')"
            )

    def trainable(self, network: TensorNames) -> Trainable:
        return Trainable(network.head | network.adapters)

    def in_words(self) -> str:
        return f"the head and adapters of rank {self.rank} in {{adapted}} layers"


class Full(RatesByDepth):
    """Train every parameter."""

    kind: Literal["full"] = "full"
    backbone_lr_scale: LearningRateScale = 1.0
    reinit_groups: Annotated[int, Field(ge=0)] = 0  # the last so many depth groups start from random weights
    step_cost = 4
    freezes = False
    trains = "everything"

    @property
    def num_new_groups(self) -> int:
        return self.reinit_groups

    def trainable(self, network: TensorNames) -> Trainable:
        if self.reinit_groups:
            _head_and_last_groups(network, "reinit_groups", self.reinit_groups)  # raises if they are too many
        return Trainable(network.everything)


class Gradual(FrozenBackbone, RatesByDepth):
    """Train the head; after every so many epochs, thaw the next depth groups, from the last one on.

    Source: Howard & Ruder (2018), "Universal Language Model Fine-tuning", https://arxiv.org/abs/1801.06146
    """

    kind: Literal["gradual"] = "gradual"
    start_groups: Annotated[int, Field(ge=0)] = 0  # that train from the beginning, beside the head
    every_epochs: Annotated[int, Field(ge=1)] = 1
    groups_at_once: Annotated[int, Field(ge=1)] = 1
    final_groups: Annotated[int, Field(ge=1)] | None = None  # None = as many as the epochs allow
    # In which a new group's rate rises to that of the schedule.
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.2
    backbone_lr_scale: LearningRateScale = 0.1
    step_cost = 4
    thaws = True

    @model_validator(mode="after")
    def _ends_above_its_start(self) -> Self:
        if self.final_groups is not None and self.final_groups <= self.start_groups:
            raise ValueError(
                f"final_groups={self.final_groups} must be above start_groups={self.start_groups}: raise it, "
                "or use finetune=partial, which trains the same groups all the time"
            )
        return self

    @property
    def trained_depth(self) -> int | None:
        return self.final_groups

    @property
    def join_warmup(self) -> float:
        return self.warmup_epochs

    def trainable(self, network: TensorNames) -> Trainable:
        at_first = _head_and_last_groups(network, "start_groups", self.start_groups)
        return _head_and_last_groups(network, "final_groups", self.final_groups or at_first.num_groups)

    def joins(self, network: TensorNames) -> Mapping[str, int]:
        from_the_last = list(reversed(self.trainable(network).groups))
        return {
            name: self._joins_in(place)
            for place, group in enumerate(from_the_last)
            for name in group
            if place >= self.start_groups
        }

    def _joins_in(self, place: int) -> int:
        """Return the epoch in which a group joins, by its place from the last (0)."""
        return self.every_epochs * (1 + (place - self.start_groups) // self.groups_at_once)

    def check_length(self, max_epochs: int, warmup_epochs: float) -> None:
        last = self._joins_in((self.final_groups or self.start_groups + 1) - 1)
        if last >= max_epochs:
            is_bound = self.final_groups is not None
            what = f"the last of finetune.final_groups={self.final_groups}" if is_bound else "its first group"
            raise ValueError(
                f"finetune=gradual would thaw {what} in epoch {last + 1}, beyond "
                f"trainer.max_epochs={max_epochs}: train longer, or lower finetune.every_epochs"
                + (" or finetune.final_groups" if is_bound else "")
            )

    def in_words(self) -> str:
        epochs = "every epoch" if self.every_epochs == 1 else f"every {self.every_epochs} epochs"
        start = f"{self.start_groups} depth groups from the start, " if self.start_groups else ""
        return f"the head, {start}{self.groups_at_once} more after {epochs}; in the end {{groups}}"


class ProbeThenFinetune(FrozenBackbone, RatesByDepth):
    """Train the head alone, then the backbone too, each with the whole schedule.

    Source: Kumar et al. (2022), "Fine-Tuning can Distort Pretrained Features",
    https://arxiv.org/abs/2202.10054
    """

    kind: Literal["lp_ft"] = "lp_ft"
    probe_epochs: Annotated[int, Field(ge=1)] = 1
    trainable_groups: Annotated[int, Field(ge=1)] | None = None  # the last so many depth groups; None = all
    finetune_lr_scale: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1  # all rates after the probe ÷ before
    backbone_lr_scale: LearningRateScale = 1.0
    step_cost = 4
    thaws = True

    @property
    def trained_depth(self) -> int | None:
        return self.trainable_groups

    @property
    def phases(self) -> list[tuple[int, float]]:
        return [(0, 1.0), (self.probe_epochs, self.finetune_lr_scale)]

    def trainable(self, network: TensorNames) -> Trainable:
        if self.trainable_groups is None:
            return Trainable(network.everything)
        return _head_and_last_groups(network, "trainable_groups", self.trainable_groups)

    def joins(self, network: TensorNames) -> Mapping[str, int]:
        return dict.fromkeys(self.trainable(network).names - network.head, self.probe_epochs)

    def check_length(self, max_epochs: int, warmup_epochs: float) -> None:
        if self.probe_epochs >= max_epochs:
            raise ValueError(
                f"finetune.probe_epochs={self.probe_epochs} leaves nothing of "
                f"trainer.max_epochs={max_epochs} for the backbone: lower it or train longer"
            )
        shortest = min(self.probe_epochs, max_epochs - self.probe_epochs)
        if warmup_epochs >= shortest:
            raise ValueError(
                f"optim.schedule.warmup_epochs={warmup_epochs:g} leaves nothing of the {shortest} epochs of "
                "a phase of finetune=lp_ft: lower it, or change finetune.probe_epochs"
            )

    def in_words(self) -> str:
        what = "everything" if self.trainable_groups is None else "{groups} too"
        return f"the head for {self.probe_epochs} epochs, then {what}"


def _head_and_last_groups(network: TensorNames, setting: str, count: int) -> Trainable:
    """Return the head and the last `count` depth groups.

    Args:
        setting: that asks for so many, for the message.

    Raises:
        ModelError: the network has fewer.
    """
    groups = network.depth_groups()
    if count > len(groups):
        raise ModelError(
            f"finetune.{setting}={count} is more than the model has: "
            f"use {len(groups)} (all of its depth groups) or fewer"
        )
    last = groups[len(groups) - count :]
    return Trainable(network.head.union(*last), last, len(groups))


def policies(base: type[FinetunePolicy] = FinetunePolicy) -> list[type[FinetunePolicy]]:
    """Return every policy's class, from the cheapest training step to the most expensive."""
    found = [policy for child in base.__subclasses__() for policy in (child, *policies(child))]
    return sorted({policy for policy in found if tags_of(policy)}, key=lambda p: (p.step_cost, p.__name__))
