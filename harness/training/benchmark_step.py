"""Measures the speed and the memory of a run's training step, on random images.

`harness.search.coordinator.measure_slots` runs several of these at a time to find how many trials fit on a
CPU. Lightning's overhead (0.3 ms a step), validation and checkpoints are not measured. The cache of frozen
activations is not used here: the frozen part of a network runs forward in every step.
"""

from __future__ import annotations

import itertools
import time

import numpy as np
import psutil
import torch

from harness.config.schema import RunConfig
from harness.data.datamodule import ImageDataModule
from harness.data.splits import ImageArrays, ImageSplits
from harness.models import apply_freezing, build_model
from harness.models.convolutions import speed_up_convolutions
from harness.models.timm_parts import recompute_activations
from harness.training.devices.machine import resolve_machine
from harness.training.module import ClassifierModule
from harness.training.teacher import find_teacher, load_teacher
from harness.training.train import model_facts

TINY_BATCH, SMALL_BATCH = 2, 16  # images in the first and in the second step
# The batch is doubled only while a step would take less than this: beyond it, images per second hardly
# change.
LONGEST_STEP_S = 0.5


class StepBenchmark:
    """The training step of a run on random images, warmed up and ready to be timed.

    `memory` is an estimate, in bytes, of what this process would use with the whole batch.

    Args:
        image_size: height and width of the data set's images, in pixels.
    """

    def __init__(self, config: RunConfig, image_size: tuple[int, int], num_classes: int) -> None:
        self._config = config
        self._splits = _made_up(image_size, num_classes, config.data.batch_size, config.is_multilabel)
        self._data = ImageDataModule(self._splits, config.data, config.augment, config.seed)
        classifier = build_model(config.model, num_classes, load_weights=False)
        self._machine = resolve_machine(config.trainer, classifier.network)
        apply_freezing(classifier, config.finetune)
        if config.trainer.gradient_checkpointing:
            recompute_activations(classifier.network, config.model.kind)
        speed_up_convolutions(classifier.network)
        classifier.to(self._machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        teacher = load_teacher(find_teacher(config), config, ())
        if teacher is not None:
            teacher.to(self._machine.device)
        facts = model_facts(config, self._splits)
        self._module = ClassifierModule(classifier, config, facts, 1, teacher=teacher).train()
        self._optimizer = self._module.configure_optimizers()["optimizer"]
        self._warm_up()

    def _warm_up(self) -> None:
        """Find the largest batch that is quick enough, and extrapolate its memory to the whole batch."""
        wanted = self._config.data.batch_size
        tiny, self.batch_size = min(TINY_BATCH, wanted), min(SMALL_BATCH, wanted)
        self._step(tiny)
        before = _own_memory()  # after a step: gradients and the optimiser's state are allocated
        seconds = self._step(self.batch_size)
        while self.batch_size < wanted and 2 * seconds < LONGEST_STEP_S:
            self.batch_size = min(2 * self.batch_size, wanted)
            seconds = self._step(self.batch_size)
        after = _own_memory()
        per_image = max(after - before, 0) / max(self.batch_size - tiny, 1)
        self.memory = after + per_image * (wanted - self.batch_size)  # bytes

    def time_steps(self, seconds: float) -> tuple[float, float]:
        """Train for this many seconds, and for one step at least.

        Returns:
            Images per second, and the fraction of the time that this thread had a core: 1 unless other
            processes compete for the cores.
        """
        started, worked, num_images = time.perf_counter(), time.thread_time(), 0
        for index in itertools.count():
            self._step(self.batch_size, index)
            num_images += self.batch_size
            elapsed = time.perf_counter() - started
            if elapsed >= seconds:
                break
        return num_images / elapsed, (time.thread_time() - worked) / elapsed

    def _step(self, batch_size: int, index: int = 0) -> float:
        started = time.perf_counter()
        images = torch.from_numpy(self._splits.train.gather(slice(batch_size))).permute(0, 3, 1, 2)
        labels = torch.from_numpy(self._splits.train.labels[:batch_size])
        images, labels = images.to(self._machine.device), labels.to(self._machine.device)
        # Each step counts as an epoch of its own, with batch index 0: the made-up training split has only
        # one batch, and alternating flips exist for no other index.
        batch = self._data.mix(self._data.augment(images, index, 0), labels, index, 0)
        for _ in range(self._config.optim.passes_per_batch):
            with self._machine.autocast():
                loss = self._module.training_step(batch, index)
            self._optimizer.zero_grad()
            loss.backward()
        self._optimizer.step()
        return time.perf_counter() - started


def _made_up(image_size: tuple[int, int], num_classes: int, count: int, is_multilabel: bool) -> ImageSplits:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *image_size, 3), dtype=np.uint8)
    classes = rng.integers(0, num_classes, count)
    labels = np.eye(num_classes, dtype=np.float32)[classes] if is_multilabel else classes
    arrays = ImageArrays(images, labels, np.arange(count))
    return ImageSplits(
        name="made up",
        train=arrays,
        val=arrays,
        class_names=tuple(map(str, range(num_classes))),
        digest="",
        row_digest="",
        source="",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


def _own_memory() -> int:
    """Return the bytes of memory of this process alone (USS), without pages shared with the fork server."""
    return int(psutil.Process().memory_full_info().uss)
