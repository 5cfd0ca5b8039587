"""The learning-rate finder: a short training whose learning rate rises from step to step (`harness lr-find`).

`harness.cli` calls `find_rate`; nothing is recorded, and the weights are thrown away. Lightning's own
`Tuner.lr_find` gives all parameter groups one rate, ends with the first epoch, and suggests a rate even where
the loss does not fall; here the groups keep their ratios, and such a curve has no suggestion.

The suggestion is a third of the rate at which the smooth loss is lowest. The rate where it falls fastest,
which others take, is often that of the untrained network's first fall, a hundred times too small, and moves
with the seed; the lowest loss does not. A tenth of its rate, as usual, trains too slowly in short runs
whose rate also falls, and the rate itself is within reach of those that never train. In trainings of three
to five epochs on digits (LeNet with SGD and with Adam, `wide_cnn` with SGD, the head of EfficientNet-Lite0
with AdamW), the suggestion had a lower validation loss than ten times and than a tenth of itself. Some
networks go through a hump and learn on at higher rates: of valleys about equally deep, the last one counts.
Source: Smith (2017), "Cyclical Learning Rates for Training Neural Networks", https://arxiv.org/abs/1506.01186
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.seed import isolate_rng
from scipy.ndimage import gaussian_filter1d

from harness.analysis.figures import DPI, OKABE_ITO
from harness.config.average import NoAverage
from harness.config.schema import RunConfig, ScheduleConfig
from harness.data import as_loaded, load_splits
from harness.errors import ConfigError
from harness.training.continued import begin_with
from harness.training.devices.machine import resolve_machine
from harness.training.fit import quiet_lightning
from harness.training.module import ClassifierModule
from harness.training.prepare import prepare_model
from harness.training.teacher import find_teacher, load_teacher
from harness.training.train import build_module, choose_data

LEAST_STEPS = 20
LEAST_LOSSES = 3
DIVERGED = 4.0  # times the lowest running mean of the loss: the test ends there, as in fastai
RUNNING_MEAN = 0.9  # the share of the running mean that a step leaves
SMOOTHING = 1 / 40  # of all steps: the width (σ) of the filter over the curve
BELOW_LOWEST = 3  # the suggestion is the rate of the lowest loss, divided by this
AS_DEEP = 0.15  # of the whole fall: a later valley that is higher by no more than this counts as the lowest
# The loss must fall by so many times its scatter about the curve, and by this share of its start.
LEAST_FALL, LEAST_FALL_SHARE = 2.5, 0.02


@dataclass(frozen=True)
class RateTest:
    """The outcome of a learning-rate test.

    Args:
        rates: Of `optim.lr`, in each step that was trained.
        losses: Of each step's batch, before the step.
        has_diverged: Whether the test ended early for that reason.
        note: What a reader must know besides; empty if nothing.
    """

    optimizer: str
    rates: list[float]
    losses: list[float]
    num_steps: int
    has_diverged: bool
    note: str = ""

    @property
    def smooth(self) -> np.ndarray:
        """The losses without their scatter; a filter about each step, so that nothing lags behind."""
        width = max(1.0, SMOOTHING * self.num_steps)
        return np.asarray(gaussian_filter1d(self.losses, width, mode="nearest"))

    @property
    def start(self) -> float:
        """The mean loss of the first tenth of the steps."""
        return float(np.mean(self.losses[: max(1, self.num_steps // 10)]))

    @property
    def lowest(self) -> int:
        """The step at which the smooth loss is lowest; of valleys about equally deep, the last one."""
        smooth = self.smooth
        deepest = int(smooth.argmin())
        limit = smooth[deepest] + AS_DEEP * max(0.0, self.start - smooth[deepest])
        is_valley = (smooth[1:-1] <= smooth[:-2]) & (smooth[1:-1] <= smooth[2:]) & (smooth[1:-1] <= limit)
        return max(deepest, *(np.flatnonzero(is_valley) + 1), 0)

    @property
    def why_none(self) -> str | None:
        """Why the curve has no minimum to take a rate from, and what to do; None if it has one."""
        scatter = 1.4826 * float(np.median(np.abs(np.diff(self.losses)))) / math.sqrt(2)  # of a normal one
        fall = self.start - float(self.smooth.min())
        if fall < max(LEAST_FALL * scatter, LEAST_FALL_SHARE * self.start):
            if self.has_diverged:
                return "the loss does not fall before it diverges: the rates are too large, lower --low"
            return (
                "the loss does not fall by more than it scatters: the rates are too small (raise --high), "
                "or the test is too short (raise --steps)"
            )
        if self.lowest >= len(self.rates) - max(2, round(2 * SMOOTHING * self.num_steps)) and (
            not self.has_diverged
        ):
            return "the loss still falls at the highest rate: the rates are too small, raise --high"
        return None

    @property
    def suggestion(self) -> float | None:
        """The rate of the lowest loss, divided by `BELOW_LOWEST`; None if there is no such minimum."""
        if self.why_none is not None:
            return None
        return float(f"{self.rates[self.lowest] / BELOW_LOWEST:.2g}")

    def __str__(self) -> str:
        found, lowest = self.suggestion, self.lowest
        ended = ", where the loss diverged" if self.has_diverged else ""
        lines = [
            f"{self.optimizer}: {len(self.rates)} of {self.num_steps} steps, optim.lr from "
            f"{self.rates[0]:.2g} to {self.rates[-1]:.2g}{ended}",
            f"loss {self.start:.3g} at the start, {self.smooth[lowest]:.3g} at its lowest "
            f"(optim.lr={self.rates[lowest]:.2g})",
            f"suggestion: optim.lr={found:g}, the rate of the lowest loss ÷ {BELOW_LOWEST}"
            if found is not None
            else f"no suggestion: {self.why_none}",
        ]
        return "\n".join(filter(None, [*lines, self.note]))


class _Ended(Exception):  # noqa: N818 - an event, not an error
    """The loss has diverged: the steps that are left would show nothing."""


class _RisingRate(pl.Callback):
    """Sets the rate before each step, all groups in proportion, and collects the losses."""

    def __init__(self, base_lr: float, rates: Sequence[float]) -> None:
        self._base_lr, self._rates = base_lr, rates
        self.losses: list[float] = []
        self.has_diverged = False
        self._mean, self._lowest = 0.0, math.inf
        self._loss_sum, self._num_images = 0.0, 0  # of the batches of this step so far

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * self._rates[len(self.losses)] / self._base_lr
        assert isinstance(module, ClassifierModule)
        module.train_means.reset()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, ClassifierModule)
        self._loss_sum += float(module.train_means.loss_sum)
        self._num_images += module.train_means.num_images
        if trainer.global_step == len(self.losses):  # the step accumulates further batches
            return
        loss = self._loss_sum / self._num_images
        self._loss_sum, self._num_images = 0.0, 0
        self._mean = RUNNING_MEAN * self._mean + (1 - RUNNING_MEAN) * loss
        mean = self._mean / (1 - RUNNING_MEAN ** (len(self.losses) + 1))  # without the bias of the start at 0
        if not math.isfinite(loss) or mean > DIVERGED * self._lowest:
            self.has_diverged = True
            raise _Ended
        self.losses.append(loss)
        self._lowest = min(self._lowest, mean)


def find_rate(config: RunConfig, low: float, high: float, num_steps: int) -> RateTest:
    """Train for a few steps, with rates that rise from `low` to `high` in equal ratios.

    The model is built, trained and thrown away here; the random state of the process is restored.

    Raises:
        ConfigError: the range or the number of steps make no sense, or the loss diverged at once.
        HarnessError: data or model do not fit the configuration.
    """
    if not 0 < low < high:
        raise ConfigError(f"--low {low:g} and --high {high:g} are no range: give 0 < low < high")
    if num_steps < LEAST_STEPS:
        raise ConfigError(f"--steps {num_steps} are too few to see a curve: give {LEAST_STEPS} or more")
    rates = [float(rate) for rate in np.geomspace(low, high, num_steps)]
    rising = _RisingRate(config.optim.lr, rates)
    with isolate_rng():
        pl.seed_everything(config.seed, verbose=False)
        module = _train(config, rising, num_steps)
    losses = rising.losses
    if len(losses) < LEAST_LOSSES:
        raise ConfigError(f"the loss diverged within {len(losses) + 1} steps: lower --low ({low:g})")
    note = _note(config, config.optim.steps_per_epoch(module.num_batches), num_steps)
    return RateTest(
        config.optim.algorithm, rates[: len(losses)], losses, num_steps, rising.has_diverged, note
    )


def _train(config: RunConfig, rising: _RisingRate, num_steps: int) -> ClassifierModule:
    """Train as a run of the configuration would, but at the rates of `rising`; return what was trained."""
    splits = load_splits(config.data)
    # Schedule and average would hide what a rate does.
    optim = config.optim.model_copy(update={"schedule": ScheduleConfig(kind="constant")})
    data = as_loaded(config.data, splits)
    config = config.model_copy(update={"optim": optim, "average": NoAverage(), "data": data})
    config, origin, splits = begin_with(config, splits)
    classifier, _ = prepare_model(config, splits, origin)
    teacher = load_teacher(find_teacher(config), config, splits.class_names)
    machine = resolve_machine(config.trainer, classifier.network)
    images = choose_data(classifier, splits, config, machine, None)
    module = build_module(classifier, config, splits, len(images.train_dataloader()), teacher)
    module.to(memory_format=torch.channels_last)
    quiet_lightning()
    trainer = pl.Trainer(
        accelerator="gpu" if machine.device.type == "cuda" else machine.device.type,
        devices=1,
        plugins=[LightningEnvironment()],
        precision=machine.lightning_precision,  # type: ignore[arg-type]
        max_epochs=-1,
        max_steps=num_steps,
        gradient_clip_val=config.optim.clip_grad_norm,
        accumulate_grad_batches=config.optim.accumulate_batches,
        callbacks=[rising],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with contextlib.suppress(_Ended):
        trainer.fit(module, images)
    return module


def _note(config: RunConfig, steps_per_epoch: int, num_steps: int) -> str:
    notes = []
    if config.finetune.thaws and num_steps > steps_per_epoch:
        notes.append(f"finetune={config.finetune.kind}: more trains from step {steps_per_epoch + 1} on")
    if hasattr(config.optim, "head_lr"):
        notes.append("optim.head_lr and optim.bias_lr have risen in proportion")
    return "; ".join(notes)


def rate_test_figure(test: RateTest) -> Figure:
    """Draw the loss over the learning rate, its smooth course, its lowest point and the suggestion."""
    figure = Figure(figsize=(8.5, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"learning-rate test of {test.optimizer}, {len(test.rates)} steps", fontsize=11)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.plot(test.rates, test.losses, ".", color="0.6", markersize=4, label="loss of a batch")
    axes.plot(test.rates, test.smooth, color=OKABE_ITO[0], linewidth=1.8, label="smooth")
    found, rate = test.suggestion, test.rates[test.lowest]
    if found is not None:
        axes.plot(rate, test.smooth[test.lowest], "o", color=OKABE_ITO[5], label=f"lowest: {rate:.2g}")
        label = f"suggestion: {found:g}"
        axes.axvline(found, color=OKABE_ITO[5], linestyle="--", linewidth=1.4, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    lowest, first = float(test.smooth.min()), float(test.smooth[0])
    room = max(first - lowest, 0.1 * abs(first))
    top = max(first, *test.losses[:10]) + 0.5 * room
    axes.set_ylim(min(lowest, *test.losses) - 0.1 * room, top)
    if max(test.losses) > top:
        axes.plot([], [], " ", label="larger losses: not shown")
    axes.set_xlabel("optim.lr")
    axes.set_ylabel("training loss")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return figure
