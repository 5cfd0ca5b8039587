"""A run's training step on made-up images: how fast it is and what memory it takes, without its data.

What is left out: Lightning's own 0.3 ms a step, validation, checkpoints, and cached features: a frozen part
runs forward each time, as it does when its features are computed.
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
from harness.training.machine import resolve_machine
from harness.training.module import ClassifierModule
from harness.training.train import model_facts

TINY_BATCH, SMALL_BATCH = 2, 16  # images, to learn how time and memory grow with the batch
LONGEST_STEP_S = 0.5  # a batch that would take longer is cut: images a second hardly change


class StepBenchmark:
    """A run that learns nothing, ready to be timed once it is made.

    Args:
        image_size: height and width of the data set's images, in pixels.
    """

    def __init__(self, config: RunConfig, image_size: tuple[int, int], num_classes: int) -> None:
        self._config = config
        self._machine = resolve_machine(config.trainer)
        self._splits = _made_up(image_size, num_classes, config.data.batch_size)
        self._data = ImageDataModule(self._splits, config.data, config.augment, config.seed)
        classifier = build_model(config.model, num_classes, load_weights=False)
        apply_freezing(classifier, config.finetune)
        speed_up_convolutions(classifier.network)
        classifier.to(self._machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._module = ClassifierModule(classifier, config, model_facts(config, self._splits), 1).train()
        self._optimizer = self._module.configure_optimizers()["optimizer"]
        self._warm_up()

    def _warm_up(self) -> None:
        """Find a batch that is quick enough, and what the whole batch would take of the memory."""
        wanted = self._config.data.batch_size
        tiny, self.batch_size = min(TINY_BATCH, wanted), min(SMALL_BATCH, wanted)
        self._step(tiny)
        before = _own_memory()  # with gradients and what the optimiser keeps
        seconds = self._step(self.batch_size)
        while self.batch_size < wanted and 2 * seconds < LONGEST_STEP_S:
            self.batch_size = min(2 * self.batch_size, wanted)
            seconds = self._step(self.batch_size)
        after = _own_memory()
        per_image = max(after - before, 0) / max(self.batch_size - tiny, 1)
        self.memory = after + per_image * (wanted - self.batch_size)  # bytes

    def time_steps(self, seconds: float) -> tuple[float, float]:
        """Train for so long, and one step at least.

        Returns:
            Images a second, and the share of the time that this thread had a core: all of it, unless other
            processes want the cores, too.
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
        # The first of an epoch: alternating flips know no others, as the epoch is one batch long.
        batch = self._data.mix(self._data.augment(images, index, 0), labels, index, 0)
        with self._machine.autocast():
            loss = self._module.training_step(batch, index)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return time.perf_counter() - started


def _made_up(image_size: tuple[int, int], num_classes: int, count: int) -> ImageSplits:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *image_size, 3), dtype=np.uint8)
    arrays = ImageArrays(images, rng.integers(0, num_classes, count), np.arange(count))
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
    """Return the bytes that this process alone holds: what a fork shares with its server is there once."""
    return int(psutil.Process().memory_full_info().uss)
