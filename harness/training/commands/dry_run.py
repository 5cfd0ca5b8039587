"""Describes a run without training it, for `harness train --dry-run` and `harness sweep --dry-run`."""

from __future__ import annotations

import torch

from harness.config.schema import RunConfig
from harness.data import load_splits
from harness.data.datamodule import ImageDataModule
from harness.models import apply_freezing, build_model
from harness.models.timm_parts import recompute_activations
from harness.training.continued import begin_with, take_weights
from harness.training.devices.machine import check_devices, resolve_machine
from harness.training.teacher import find_teacher, load_teacher


def describe_run(config: RunConfig) -> str:
    """Return sizes, steps, parameters, device and precision of a run, as lines of text.

    The model is built on the meta device: no weights are loaded, no memory is taken. But a teacher is loaded,
    and the trained model that the run begins with.

    Raises:
        HarnessError: the run would fail before its first step. Missing weights are not noticed.
    """
    config.finetune.check_installed()
    machine, devices = resolve_machine(config.trainer), config.trainer.devices
    check_devices(devices, machine.device.type, torch.cuda.device_count())
    splits = load_splits(config.data)
    with torch.device("meta"):
        classifier = build_model(config.model, len(splits.class_names), load_weights=False)
        freezing = apply_freezing(classifier, config.finetune, config.trainer.max_epochs)
        if config.trainer.gradient_checkpointing:
            recompute_activations(classifier.network, config.model.kind)
    machine = resolve_machine(config.trainer, classifier.network)
    teacher = load_teacher(find_teacher(config), config, splits.class_names)
    _, origin, splits = begin_with(config, splits)
    if origin is not None:  # does it fit?
        names, how = splits.class_names, {"mean": splits.mean, "std": splits.std}
        take_weights(
            build_model(config.model, len(names), load_weights=False, **how), config.model, names, origin
        )
    together = f"{devices} × " if devices > 1 else ""
    num_batches = len(ImageDataModule(splits, config.data, config.augment, config.seed).train_dataloader())
    steps = config.optim.steps_per_epoch(num_batches)
    batch_size = config.data.batch_size * config.optim.accumulate_batches
    facts = {
        "data": f"{splits.name}: {len(splits.train):,} training and {len(splits.val):,} validation images, "
        f"{len(splits.class_names)} classes, from {splits.source}",
        "model": f"{config.model.kind} at {classifier.image_size} pixels",
        "parameters": f"{freezing.trainable_parameters:,} trainable, {freezing.frozen_parameters:,} frozen",
        "freezing": str(freezing),
        "optimiser": f"{config.optim.algorithm}, lr {config.optim.lr:g}, "
        f"{config.optim.schedule.kind} schedule",
        **({} if origin is None else {"begins with": origin.describe(splits.class_names)}),
        **({} if teacher is None else {"teacher": teacher.describe()}),
        "steps": f"{steps:,} an epoch{_bound(config)}, of {batch_size:,} images each, "
        f"{steps * config.trainer.max_epochs:,} in {config.trainer.max_epochs} epochs",
        "device": f"{together}{machine.device.type}, {machine.precision}, "
        f"{torch.get_num_threads()} CPU threads",
    }
    return "\n".join(f"{name + ':':<12} {fact}" for name, fact in facts.items())


def _bound(config: RunConfig) -> str:
    samples = config.data.samples_per_epoch
    return "" if samples is None else f" (data.samples_per_epoch={samples:,})"
