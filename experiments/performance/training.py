"""Measures training: the input pipeline, plain PyTorch loops, and runs of the harness.

`Place.run` calls each of these functions in a new process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from experiments.performance.matmul import matmul_flops
from experiments.performance.measurement import Epoch, Timing
from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.data import load_splits
from harness.data.datamodule import ImageDataModule
from harness.data.splits import ImageSplits
from harness.models import ImageClassifier, apply_freezing, build_model
from harness.tracking.environment import available_cores
from harness.tracking.store import open_store
from harness.training.devices.machine import Machine, prepare_process, resolve_machine
from harness.training.optimisation.optim import build_optimizer, build_schedule
from harness.training.prepare import show_images
from harness.training.result import Decision, EpochReport
from harness.training.train import train

MIN_STEPS = 3

Batch = tuple[Tensor, Tensor]


def images_per_second(batches: Iterable[Batch], seconds: float, *, min_batches: int = 1) -> float:
    """Return images per second of iterating for some seconds, after a first batch, which is not counted."""
    iterator = iter(batches)
    next(iterator)
    started, images = time.perf_counter(), 0
    for done, (batch, _) in enumerate(iterator, start=1):
        images += len(batch)
        if time.perf_counter() - started > seconds and done >= min_batches:
            break
    return images / (time.perf_counter() - started)


# ── the input pipeline alone ──────────────────────────────────────────────────────────────────────


def harness_input(overrides: list[str], seconds: float) -> float:
    """Return images/s of gathering, cropping, flipping and normalising whole batches."""
    setup = set_up(overrides)
    preprocess = setup.classifier.preprocess
    return images_per_second(((preprocess(i), y) for i, y in setup.endless_batches()), seconds)


def usual_input(overrides: list[str], seconds: float) -> float:
    """Return images/s of the same by a DataLoader of two workers over PIL images."""
    from experiments.performance import usual_script as usual

    config = prepare(overrides)
    arrays = load_splits(config.data).train
    images = usual.ArrayImages(arrays.gather(slice(None)), arrays.labels, usual.train_transform("wide_cnn"))
    loader = usual.build_loader(images, config.data.batch_size, shuffle=True)
    return images_per_second((batch for _ in count() for batch in loader), seconds)


# ── training ──────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Setup:
    """What a bare loop trains, made by the harness's own parts."""

    config: RunConfig
    machine: Machine
    splits: ImageSplits
    classifier: ImageClassifier
    data: ImageDataModule

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield an epoch's augmented batches, on the device, as the harness's DataModule does."""
        for index, (images, labels) in enumerate(self.data.train_batches(lambda: epoch)):
            moved = images.to(self.machine.device), labels.to(self.machine.device)
            yield self.data.augment(moved[0], epoch, index), moved[1]

    def endless_batches(self) -> Iterator[Batch]:
        return (batch for epoch in count() for batch in self.batches(epoch))

    def build_step(self) -> Callable[[Tensor, Tensor], None]:
        """Return one step of plain PyTorch: forward, loss, backward, optimiser, schedule."""
        config, classifier = self.config, self.classifier
        optimizer = build_optimizer(classifier, config.optim, config.finetune)
        steps = max(1, len(self.splits.train) // config.data.batch_size)
        schedule = build_schedule(optimizer, config.optim.schedule, steps, config.trainer.max_epochs)
        smoothing = config.optim.label_smoothing

        def step(images: Tensor, labels: Tensor) -> None:
            optimizer.zero_grad(set_to_none=True)
            with self.machine.autocast():
                loss = F.cross_entropy(classifier(images), labels, label_smoothing=smoothing)
            loss.backward()
            optimizer.step()
            schedule.step()

        return step


def default_steps(overrides: list[str], seconds: float) -> float:
    """Return images/s of plain fp32 steps in torch's default layout, with glibc's memory defaults."""
    setup = set_up([*overrides, "trainer.precision=fp32", "trainer.keep_memory=false"])
    step = setup.build_step()
    batches = ((images.contiguous(), labels) for images, labels in setup.endless_batches())
    return images_per_second(_stepped(step, batches), seconds, min_batches=MIN_STEPS)


def auto_steps(overrides: list[str], seconds: float) -> float:
    """Return images/s of the same steps as the harness sets them up."""
    setup = set_up(overrides, channels_last=True)
    return images_per_second(
        _stepped(setup.build_step(), setup.endless_batches()), seconds, min_batches=MIN_STEPS
    )


def bare_epoch(overrides: list[str], epochs: int = 2) -> float:
    """Return training images/s of the last epoch of a plain PyTorch loop, set up as the harness sets up."""
    setup = set_up(overrides, channels_last=True)
    step = setup.build_step()
    rate = 0.0
    for epoch in range(epochs):
        started = time.perf_counter()
        for images, labels in setup.batches(epoch):
            step(images, labels)
        rate = len(setup.splits.train) / (time.perf_counter() - started)
    return rate


def harness_epoch(overrides: list[str], whole_epoch: int, epochs: int = 2) -> float:
    """Return training images/s of the last epoch of a whole run, as if it had had `whole_epoch` images.

    Counted is all the time from the end of the epoch before to the end of this one, with its checkpoint and
    its recording, but without validation, which a bare loop does not have. The time of the steps is scaled
    to `whole_epoch` images; the rest does not depend on the number of images and is not scaled.
    """
    ends: list[tuple[float, EpochReport]] = []

    def on_epoch(report: EpochReport) -> Decision:
        ends.append((time.perf_counter(), report))
        return "continue"

    config = prepare([*overrides, f"trainer.max_epochs={epochs}", "tracking.log_model=false"])
    _run(config, on_epoch)
    (before, _), (after, last) = ends[-2:]
    train_s, val_s = _train_and_val_seconds(config, last)
    around_s = after - before - val_s - train_s
    whole_s = whole_epoch / last.metrics["images_per_second"] + around_s
    return whole_epoch / whole_s


def run_timing(overrides: list[str]) -> Timing:
    """Time a whole run, and each of its epochs."""
    reports: list[EpochReport] = []

    def on_epoch(report: EpochReport) -> Decision:
        reports.append(report)
        return "continue"

    config = prepare(overrides)
    started = time.perf_counter()
    _run(config, on_epoch)
    seconds = time.perf_counter() - started
    return Timing(seconds, tuple(Epoch(*_train_and_val_seconds(config, report)) for report in reports))


def _run(config: RunConfig, on_epoch: Callable[[EpochReport], Decision]) -> None:
    tracker = open_store(config.tracking).start_run("bench", "bench", {})
    with tempfile.TemporaryDirectory() as folder:
        train(config, tracker=tracker, checkpoint_dir=Path(folder), on_epoch=on_epoch)


def _train_and_val_seconds(config: RunConfig, report: EpochReport) -> tuple[float, float]:
    train_s = len(load_splits(config.data).train) / report.metrics["images_per_second"]
    return train_s, report.metrics["epoch_seconds"] - train_s


def describe_machine(overrides: list[str]) -> dict[str, Any]:
    """Return what `auto` means here, the measured matmul rates (FLOP/s), and the FLOPs of one image."""
    setup = set_up(overrides, channels_last=True)
    images, labels = next(setup.endless_batches())
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(setup.classifier(images[:2]), labels[:2]).backward()
    return {
        "auto": setup.machine.describe(),
        "matmul_flops": {
            "fp32": matmul_flops(setup.machine.device, torch.float32),
            "bf16": matmul_flops(setup.machine.device, torch.bfloat16),
        },
        "flops_per_image": counter.get_total_flops() / 2,
    }


def _stepped(step: Callable[[Tensor, Tensor], None], batches: Iterator[Batch]) -> Iterator[Batch]:
    for images, labels in batches:
        step(images, labels)
        yield images, labels


def prepare(overrides: list[str]) -> RunConfig:
    """Return the configuration, after this process was set up as a run sets itself up."""
    config = compose_run(overrides)
    prepare_process(available_cores(), config.trainer.keep_memory)  # torch's own default number of threads
    return config


def set_up(overrides: list[str], *, channels_last: bool = False) -> Setup:
    config = prepare(overrides)
    torch.manual_seed(config.seed)
    splits = load_splits(config.data)
    classifier = build_model(config.model, len(splits.class_names), mean=splits.mean, std=splits.std)
    machine = resolve_machine(config.trainer, classifier.network)
    show_images(classifier, splits.train)
    apply_freezing(classifier, config.finetune)
    classifier.to(machine.device)
    if channels_last:
        classifier.to(memory_format=torch.channels_last)
    classifier.train()
    return Setup(
        config, machine, splits, classifier, ImageDataModule(splits, config.data, config.augment, config.seed)
    )
