"""Measures what a run costs: parameters, latency of one image, seconds, images and operations of training.

`train.py` calls `measure_costs` at the end of a run. Sweeps use the costs as constraints or as a second
objective (`harness.config.objectives`), and reject models that are too large with `count_params_millions`
beforehand.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.schema import RunConfig
from harness.data import load_splits
from harness.data.datamodule import ImageDataModule
from harness.data.features.datamodule import FeatureDataModule
from harness.errors import ModelError
from harness.models import ImageClassifier, build_model
from harness.training.checkpoints.checkpoint import load_checkpoint, restore_classifier
from harness.training.devices.machine import Machine
from harness.training.flops import PFLOP, count_image_flops

log = logging.getLogger(__name__)

WARMUP_PASSES = 3
MIN_PASSES, MAX_PASSES, ENOUGH_S = 5, 50, 1.0


def measure_costs(
    checkpoint: Path, image_HWC: np.ndarray, history: Sequence[Mapping[str, float]], machine: Machine
) -> dict[str, float]:
    """Return the costs by the names of `harness.config.objectives.Cost`.

    Args:
        image_HWC: uint8, an image of the data set.
        history: the metrics of every epoch, those before an interruption included.
    """
    classifier = restore_classifier(load_checkpoint(checkpoint))
    classifier.to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image_BCHW = torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)[None].to(machine.device)
    return {
        "params_millions": _millions(classifier),
        "latency_ms": _latency_ms(classifier, image_BCHW, machine),
        "train_seconds": sum(metrics["epoch_seconds"] for metrics in history),
    }


def training_costs(
    config: RunConfig, data: ImageDataModule | FeatureDataModule, num_classes: int, num_epochs: int
) -> dict[str, float]:
    """Return how many images a run has trained on, and the operations that this took in all.

    The operations are left out, with a warning, if those of a step of the network cannot be counted.
    """
    num_images = num_epochs * len(data.epochs)
    cached_views = data.train.num_views if isinstance(data, FeatureDataModule) else None
    try:
        flops = count_image_flops(config, num_classes, cached_views, num_epochs)
    except ModelError as error:
        log.warning("%s: train_pflop is not recorded", error)
        return {"train_images": float(num_images)}
    total = flops.total(num_images, data.epochs.count)
    return {"train_images": float(num_images), "train_pflop": total / PFLOP}


def images_per_second(costs: Mapping[str, float]) -> dict[str, float]:
    """Return the training images of a run over the seconds of its epochs, validation included."""
    return {"train_images_per_second": costs["train_images"] / costs["train_seconds"]}


def count_params_millions(config: RunConfig) -> float:
    """Return the number of parameters of a run's model, in millions, without allocating them."""
    num_classes = len(load_splits(config.data).class_names)
    with torch.device("meta"):
        return _millions(build_model(config.model, num_classes, load_weights=False))


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak of this process's memory, and of what it allocated on its GPU, in GiB (2^30 bytes).

    The process of a trial trains nothing else. In the process of `harness train`, it is the run's peak, too;
    in a Python session, it is that of everything that the session has done.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes; on macOS bytes
    found = {"peak_memory_gib": peak * (1 if sys.platform == "darwin" else 1024) / 2**30}
    if device.type == "cuda":
        found["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


def _millions(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@torch.inference_mode()
def _latency_ms(classifier: ImageClassifier, image_BCHW: Tensor, machine: Machine) -> float:
    """Return the time of the fastest forward pass over one image, preprocessing included.

    The fastest of several, because slower ones show what else runs on the machine, such as other trials.
    """
    times: list[float] = []
    with machine.autocast():
        for _ in range(WARMUP_PASSES):
            classifier(image_BCHW)
        while len(times) < MIN_PASSES or (sum(times) < ENOUGH_S and len(times) < MAX_PASSES):
            _wait_for(machine.device)
            started = time.perf_counter()
            classifier(image_BCHW)
            _wait_for(machine.device)
            times.append(time.perf_counter() - started)
    return 1000 * min(times)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
