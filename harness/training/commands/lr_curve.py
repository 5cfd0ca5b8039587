"""The learning rates of a run, step by step, before it is trained: `harness lr-curve`.

The rates are those of the run's own optimiser and schedule, which are built as for training and stepped
through; there is no second formula. `harness.cli` calls `trace_rates`, which needs the data set for the
number of steps, but no weights.
"""

from __future__ import annotations

import textwrap
import warnings
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.analysis.figures import DPI, OKABE_ITO
from harness.config.schema import RunConfig
from harness.data import load_splits
from harness.data.datamodule import ImageDataModule
from harness.models import apply_freezing, build_model
from harness.training.optimisation.optim import build_optimizer, build_schedule
from harness.training.optimisation.schedules import PlateauLR

MOST_LABELLED = 8  # curves: as many as there are colours


@dataclass(frozen=True)
class RateCurve:
    """The learning rates of a run.

    Args:
        steps_per_epoch: Optimiser steps in an epoch.
        rates: By the names of parameter groups: the rate of each optimiser step. Groups with the same rates
            are one.
        note: What the curve leaves out; empty if nothing.
    """

    schedule: str
    optimizer: str
    max_epochs: int
    steps_per_epoch: int
    rates: dict[str, list[float]]
    note: str = ""

    def __str__(self) -> str:
        lines = [
            f"{self.schedule} schedule of {self.optimizer}: {self.max_epochs} epochs of "
            f"{self.steps_per_epoch:,} steps"
        ]
        width = max(map(len, self.rates))
        for name, rates in self.rates.items():
            peak = max(range(len(rates)), key=rates.__getitem__)
            lines.append(
                f"{name:<{width}}  begins at {rates[0]:.3g}, peaks at {rates[peak]:.3g} in step {peak + 1:,} "
                f"(epoch {peak // self.steps_per_epoch + 1}), ends at {rates[-1]:.3g}"
            )
        return "\n".join(filter(None, [*lines, self.note]))


def trace_rates(config: RunConfig) -> RateCurve:
    """Return the learning rate of each parameter group in every optimiser step of a run.

    Raises:
        HarnessError: the data set or the model does not fit the configuration.
    """
    splits = load_splits(config.data)
    num_batches = len(ImageDataModule(splits, config.data, config.augment, config.seed).train_dataloader())
    steps = config.optim.steps_per_epoch(num_batches)
    with torch.device("meta"):
        classifier = build_model(config.model, len(splits.class_names), load_weights=False)
        apply_freezing(classifier, config.finetune)
        optimizer = build_optimizer(classifier, config.optim, config.finetune)
    max_epochs = config.trainer.max_epochs
    schedule = build_schedule(optimizer, config.optim.schedule, steps, max_epochs)
    traced: dict[str, list[float]] = {group["name"]: [] for group in optimizer.param_groups}
    with warnings.catch_warnings():
        # No optimiser step comes before the schedule's: there is nothing to train.
        warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\)` before `optimizer\.step\(\).*")
        for _ in range(steps * (config.trainer.end_after or max_epochs)):
            for group in optimizer.param_groups:
                traced[group["name"]].append(float(group["lr"]))
            schedule.step()
    return RateCurve(
        config.optim.schedule.kind,
        config.optim.algorithm,
        max_epochs,
        steps,
        _merged(traced),
        _note(config) if isinstance(schedule, PlateauLR) else "",
    )


def _merged(traced: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return one curve for all groups that have the same rates, such as those with and without decay."""
    names: dict[tuple[float, ...], list[str]] = {}
    for name, rates in traced.items():
        role = name.removesuffix("/no_decay").removesuffix("/decay")
        same = names.setdefault(tuple(rates), [])
        same += [role] if role not in same else []
    return {", ".join(roles): list(rates) for rates, roles in names.items()}


def _note(config: RunConfig) -> str:
    schedule, metric = config.optim.schedule, config.trainer.monitor.metric
    return (
        f"not drawn, as it depends on training: × {schedule.step_gamma:g} whenever {metric} has got no "
        f"better for {schedule.patience} epochs, down to {schedule.final_lr_ratio:g} of the peak"
    )


def rate_figure(curve: RateCurve) -> Figure:
    """Draw the rate of each group over the epochs."""
    figure = Figure(figsize=(8.5, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(
        f"learning rate: {curve.schedule} schedule of {curve.optimizer}, "
        f"{curve.max_epochs} epochs of {curve.steps_per_epoch:,} steps",
        fontsize=11,
    )
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    drawn = list(curve.rates.items())[:MOST_LABELLED]
    left_out = len(curve.rates) - len(drawn)
    for colour, (name, rates) in zip(OKABE_ITO, drawn, strict=False):
        places = [step / curve.steps_per_epoch for step in range(len(rates))]
        axes.plot(places, rates, color=colour, linewidth=1.6, label=name)
    axes.set_xlim(0, max(len(rates) for rates in curve.rates.values()) / curve.steps_per_epoch)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("\n".join(["epochs", *textwrap.wrap(curve.note, 90)]))
    axes.set_ylabel("learning rate")
    title = f"first {MOST_LABELLED} of {len(curve.rates)} groups" if left_out else None
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, title=title)
    return figure
