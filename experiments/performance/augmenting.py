"""Measures augmentation: images per second of each technique, beside libraries that draw for each image.

`rows/training.py` calls `measure` in a new process. Libraries are applied image by image, as they are in a
data loader; the harness augments a whole batch. Both sides count the CPU time of one thread, without
decoding, so that neither the number of workers nor other programs decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import augment_and_mix_transform, rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2

from experiments.performance.training import prepare
from harness.config.schema import AugmentConfig
from harness.data import load_splits
from harness.data.augment.mixing import BatchMix
from harness.data.augment.transforms import BatchAugment

BATCH = 1024  # images
FEW = 64  # of them, that a library augments between two looks at the clock
Batch = Tensor  # uint8 (B, 3, H, W)


@dataclass(frozen=True)
class Technique:
    """One augmentation, and the libraries that have it.

    Args:
        libraries: By name: a function of one image, uint8 (3, H, W), or PIL's if the name ends in "PIL".
    """

    name: str
    config: AugmentConfig
    libraries: dict[str, Callable[..., object]]


def techniques() -> list[Technique]:
    """Return each augmentation at a usual strength, with the same strength in the libraries."""
    torchvision, bilinear = "torchvision v2", v2.InterpolationMode.BILINEAR
    crop = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(32, padding=4, padding_mode="reflect")])
    jitter = AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    affine = v2.RandomAffine(15, scale=(0.8, 1.2), interpolation=bilinear)
    erase = RandomErasing(probability=0.5, mode="pixel", device="cpu")
    return [
        Technique("flip, shifted crop", AugmentConfig(flip=True, crop_padding=4), {torchvision: crop}),
        Technique("rotation, scale", AugmentConfig(rotation=15.0, scale=0.2), {torchvision: affine}),
        Technique("TrivialAugment", AugmentConfig(policy="trivial"), {torchvision: v2.TrivialAugmentWide()}),
        Technique(
            "RandAugment",
            AugmentConfig(policy="rand"),
            {torchvision: v2.RandAugment(2, 9), "timm, PIL": rand_augment_transform("rand-m9-n2-p1.0", {})},
        ),
        Technique(
            "AugMix",
            AugmentConfig(policy="augmix"),
            {torchvision: v2.AugMix(), "timm, PIL": augment_and_mix_transform("augmix-m3-w3", {})},
        ),
        Technique("colour jitter", jitter, {torchvision: v2.ColorJitter(0.4, 0.4, 0.4, 0.1)}),
        Technique("blur", AugmentConfig(blur_sigma=1.0), {torchvision: v2.GaussianBlur(7, (0.01, 1.0))}),
        Technique("noise", AugmentConfig(noise_std=0.1), {torchvision: v2.GaussianNoise()}),
        Technique("cutout", AugmentConfig(cutout_size=8), {}),
        Technique(
            "random erasing",
            AugmentConfig(erasing_probability=0.5),
            {torchvision: v2.RandomErasing(0.5), "timm": lambda image: erase(image.float().div_(255))},
        ),
        Technique("mixup", AugmentConfig(mixup_alpha=0.2), {"timm, per image": _timm_mixup(mixup_alpha=0.2)}),
        Technique(
            "cutmix",
            AugmentConfig(cutmix_alpha=1.0),
            {"timm, per image": _timm_mixup(mixup_alpha=0.0, cutmix_alpha=1.0)},
        ),
    ]


def _timm_mixup(**alphas: float) -> Mixup:
    return Mixup(**alphas, mode="elem", num_classes=10)


def measure(overrides: list[str], seconds: float) -> list[tuple[str, float, dict[str, float]]]:
    """Return of each technique: its name, the harness's images/s, those of libraries by name."""
    config = prepare(overrides)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train = load_splits(config.data).train
    rows = train.gather(np.arange(min(BATCH, len(train) // 2 * 2)))
    images = torch.from_numpy(rows).permute(0, 3, 1, 2)
    labels = torch.arange(len(images)) % 10
    return [
        (
            technique.name,
            images_per_second(_of_harness(technique.config, images, labels), len(images), seconds),
            {
                name: images_per_second(*_of_library(name, apply, images, labels), seconds)
                for name, apply in technique.libraries.items()
            },
        )
        for technique in techniques()
    ]


def images_per_second(apply: Callable[[], object], num_images: int, seconds: float) -> float:
    """Return the images per second of CPU time of a function that augments so many, after a first call."""
    apply()
    started, count = time.process_time(), 0
    while (passed := time.process_time() - started) < seconds:
        apply()
        count += num_images
    return count / passed


def _of_harness(config: AugmentConfig, images: Batch, labels: Tensor) -> Callable[[], object]:
    augment, mix = BatchAugment(config), BatchMix(config, num_classes=10)
    generator = torch.Generator().manual_seed(0)
    if mix.is_on:
        return lambda: mix(images, labels, seed=0)
    return lambda: augment(images, generator)


def _of_library(
    name: str, apply: Callable[..., object], images: Batch, labels: Tensor
) -> tuple[Callable[[], object], int]:
    """Return a function that augments some images by a library, and how many."""
    if isinstance(apply, Mixup):  # it takes batches, and overwrites them
        return lambda: apply(images.float().div_(255), labels), len(images)
    few: Sequence[object] = images[:FEW].contiguous().unbind()
    if name.endswith("PIL"):
        few = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images[:FEW]]
    return lambda: [apply(image) for image in few], len(few)
