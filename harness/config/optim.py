"""The section `optim`: the optimisers, what they share, and the learning rate over the run.

`schema.py` puts it into a run. `harness.training.optimisation.optim` builds the optimiser,
`harness.training.optimisation.schedules` the schedule. An optimiser of timm needs no class here: its name is
one of `TIMM_OPTIMISERS`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from harness.config.base import Section
from harness.errors import ConfigError, did_you_mean

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Kind = Literal[
    "constant",
    "cosine",
    "linear",
    "one_cycle",
    "step",
    "multi_step",
    "exponential",
    "polynomial",
    "trapezoid",
    "plateau",
]
# Kinds whose rates in the finished epochs do not depend on trainer.max_epochs: such a run can be prolonged.
SCHEDULES_OF_ANY_LENGTH = ("constant", "step", "multi_step", "plateau")

# The optimisers of timm 1.0.31 that train and resume here (`tests/training/test_timm_optim.py` tries each).
# Left out: bnb… and fused…, which need packages that are not installed; kron…, which compiles for minutes;
# and adahessian, which needs second derivatives. A leading c is the cautious variant; a final w decays
# weights as AdamW does, a final c does so with a correction for the schedule.
# fmt: off
TIMM_OPTIMISERS = (
    "adabelief", "adadelta", "adafactor", "adafactorbv", "adafactorbvc", "adagrad", "adam", "adamax",
    "adamc", "adamp", "adamuon", "adamw", "adamwlegacy", "adan", "adanw", "adopt", "adoptc", "adoptw",
    "cadafactor", "cadafactorbv", "cadafactorbvc", "cadamc", "cadamp", "cadamw", "cadan", "cadanw",
    "cadopt", "cadoptc", "cadoptw", "clamb", "clambw", "claprop", "clion", "clionc", "cmars", "cnadamc",
    "cnadamw", "crmsproptf", "csgdc", "csgdp", "csgdw", "lamb", "lambc", "lambcd", "lambcw", "lambw",
    "laprop", "lapropc", "larc", "lars", "lion", "lionc", "madgrad", "madgradw", "mars", "momentum", "muon",
    "nadam", "nadamc", "nadamlegacy", "nadamuon", "nadamw", "nesterov", "nesterovw", "nlarc", "nlars",
    "nmuon", "novograd", "novogradc", "novogradw", "radabelief", "radam", "radamlegacy", "radamw",
    "rmsprop", "rmsproptf", "rmsproptfc", "rmsproptfw", "sgd", "sgdc", "sgdp", "sgdw",
)
# fmt: on


class ScheduleConfig(Section):
    """The learning rate over the run, in optimiser steps, as a factor of `optim.lr`."""

    kind: Kind = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0  # linear from 0; for one_cycle the rising part
    # Where cosine, linear, one_cycle, exponential, polynomial and trapezoid end; plateau never goes below.
    final_lr_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    cycles: PositiveInt = 1  # cosine: so many of equal length, each begins anew ...
    cycle_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # ... at this × the peak of the one before
    power: Annotated[float, Field(gt=0.0)] = 2.0  # polynomial
    decay_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2  # trapezoid: the falling part of the run
    step_epochs: PositiveInt = 10  # step: every so many epochs ...
    # multi_step: after each of these epochs, which may be fractions ...
    milestones: Annotated[tuple[Annotated[float, Field(gt=0.0)], ...], Field(strict=False)] = ()
    # plateau: after so many epochs in which trainer.monitor gets no better ...
    patience: PositiveInt = 3
    step_gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1  # ... the rate is multiplied by this

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        if self.kind == "multi_step" and not self.milestones:
            raise ValueError("kind=multi_step needs epochs: set milestones=[5,8]")
        if any(later <= earlier for earlier, later in pairwise(self.milestones)):
            raise ValueError(
                f"milestones={list(self.milestones)} do not rise: list each epoch once, in order"
            )
        if self.kind == "exponential" and self.final_lr_ratio == 0:
            raise ValueError("kind=exponential never reaches 0: set final_lr_ratio=0.01")
        if self.kind == "plateau" and self.step_gamma == 1:
            raise ValueError("kind=plateau with step_gamma=1 never lowers the rate: set step_gamma=0.1")
        last_peak = self.cycle_decay ** (self.cycles - 1)
        if self.kind == "cosine" and last_peak < self.final_lr_ratio:
            raise ValueError(
                f"the last of {self.cycles} cycles begins at {last_peak:.3g}, below "
                f"final_lr_ratio={self.final_lr_ratio:g}: raise cycle_decay or lower final_lr_ratio"
            )
        return self

    def check_length(self, epochs: int) -> None:
        """Refuse a schedule that does not fit in so many epochs.

        Raises:
            ValueError: the warm-up, the milestones or the falling part do not fit.
        """
        if self.warmup_epochs >= epochs:
            raise ValueError(
                f"optim.schedule.warmup_epochs={self.warmup_epochs:g} leaves nothing of "
                f"trainer.max_epochs={epochs}: lower it or train longer"
            )
        if self.kind == "multi_step" and self.milestones[-1] >= epochs:
            raise ValueError(
                f"optim.schedule.milestones has {self.milestones[-1]:g}, which is not before the end of "
                f"trainer.max_epochs={epochs}: lower it or train longer"
            )
        if self.kind == "trapezoid" and self.warmup_epochs > (1 - self.decay_share) * epochs + 1e-9:
            raise ValueError(
                f"optim.schedule.warmup_epochs={self.warmup_epochs:g} reaches into the falling part, "
                f"the last {self.decay_share:g} of trainer.max_epochs={epochs}: lower it or decay_share"
            )


class BaseOptim(Section):
    """What every optimiser has. Weight decay is not applied to norms and biases."""

    lr: Annotated[float, Field(gt=0.0)]  # of the head; the backbone's is this × finetune.backbone_lr_scale
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    label_smoothing: Fraction = 0.0
    # Gradients are clipped in one way at most: their norm, each of their values, or, for each row of weights
    # below the head, their norm ÷ the row's own (adaptive, https://arxiv.org/abs/2102.06171).
    clip_grad_norm: Annotated[float, Field(gt=0.0)] | None = None
    clip_grad_value: Annotated[float, Field(gt=0.0)] | None = None
    clip_grad_adaptive: Annotated[float, Field(gt=0.0)] | None = None
    accumulate_batches: PositiveInt = 1  # an optimiser step takes the mean gradient of so many batches
    # Sharpness-aware minimisation: the gradient is taken so far up the slope; every batch runs twice.
    sam_rho: Annotated[float, Field(gt=0.0)] | None = None
    schedule: ScheduleConfig = ScheduleConfig()

    @model_validator(mode="after")
    def _clips_in_one_way(self) -> Self:
        keys = ("clip_grad_norm", "clip_grad_value", "clip_grad_adaptive")
        asked = [key for key in keys if getattr(self, key) is not None]
        if len(asked) > 1:
            raise ValueError(f"{' and '.join(asked)} are two ways to clip: set one of them to null")
        return self

    def steps_per_epoch(self, num_batches: int) -> int:
        """Return the optimiser steps in an epoch of so many batches.

        Raises:
            ConfigError: an epoch has fewer batches than a step accumulates.
        """
        if self.accumulate_batches > num_batches:
            raise ConfigError(
                f"optim.accumulate_batches={self.accumulate_batches} is beyond the epoch, which has "
                f"{num_batches} batches: lower it or data.batch_size"
            )
        return -(-num_batches // self.accumulate_batches)

    @property
    def passes_per_batch(self) -> int:
        """How often a training batch runs forward and backward."""
        return 1 if self.sam_rho is None else 2

    @property
    def algorithm(self) -> str:
        """The optimiser's name: its kind, or timm's name for it."""
        return str(getattr(self, "name", None) or getattr(self, "kind", ""))


class Sgd(BaseOptim):
    kind: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(gt=0.0)] = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0: set momentum=0.9 or nesterov=false")
        return self


class Adam(BaseOptim):
    kind: Literal["adam"] = "adam"
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Annotated[float, Field(gt=0.0)] = 1e-8  # added to the root of the second moment; Keras has 1e-7


class AdamW(BaseOptim):
    kind: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Annotated[float, Field(gt=0.0)] = 1e-8  # added to the root of the second moment; Keras has 1e-7


class MuonOptim(BaseOptim):
    """Muon for all weights below the head, SGD for the rest; both with Nesterov's momentum."""

    kind: Literal["muon"] = "muon"
    # Muon's, of the weights. Before each step a layer's weights are scaled to norm √(number of outputs);
    # those of a pretrained network keep their own norm, and the step is scaled instead.
    lr: Annotated[float, Field(gt=0.0)] = 0.24
    momentum: Fraction = 0.6
    num_newton_schulz_steps: Annotated[int, Field(ge=1, le=10)] = 3
    head_lr: Annotated[float, Field(gt=0.0)] = 0.1  # SGD
    bias_lr: Annotated[float, Field(gt=0.0)] = 0.1  # SGD; of norms and biases
    sgd_momentum: Fraction = 0.85
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0  # SGD's lr × coefficient, norms and biases too
    # Epochs after which the first depth group's learning rate has its final value; None = as all others.
    stem_epochs: Annotated[float, Field(gt=0.0)] | None = None
    schedule: ScheduleConfig = ScheduleConfig(kind="linear")


class TimmOptim(BaseOptim):
    """An optimiser of timm, by its name there; what it leaves unsaid has timm's defaults."""

    kind: Literal["timm"] = "timm"
    name: str
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    # Further arguments of the optimiser, such as {momentum: 0.9} or {betas: [0.9, 0.99]}.
    args: dict[str, bool | int | float | str | list[float]] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in TIMM_OPTIMISERS:
            near = did_you_mean(name, TIMM_OPTIMISERS)
            raise ValueError(f"{name!r} is none of timm's optimisers that train here{near}")
        return name


OptimConfig = Annotated[Sgd | Adam | AdamW | MuonOptim | TimmOptim, Field(discriminator="kind")]
