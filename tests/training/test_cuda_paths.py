"""Without a GPU: what would run on one, on fake CUDA tensors, which know their device, shape and type alone.

Mixing devices raises in this mode, as on a real one, so a tensor created on the wrong device is found. What
cannot be seen this way: numbers, speed, autocast, backward passes and the draws, which need a real device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from harness.config.finetune import Full
from harness.config.schema import AdamW, RunConfig, ScheduleConfig, ScratchModel, Sgd, TrainerConfig
from harness.data.augment import auto_augment, mixing, transforms
from harness.models import build_model
from harness.models.preprocess import Preprocess
from harness.training.devices import machine
from harness.training.module import ClassifierModule
from harness.training.optimisation.optim import build_optimizer, build_schedule

BATCH = 8
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    with FakeTensorMode(shape_env=ShapeEnv()):
        yield


@pytest.fixture
def photos(_fake: None) -> Tensor:
    images = torch.empty(BATCH, 3, 32, 32, dtype=torch.uint8, device=CUDA)
    return images.contiguous(memory_format=torch.channels_last)


def whole(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64, device=CUDA)


def real(*shape: int) -> Tensor:
    return torch.zeros(shape, device=CUDA)


def test_mixed_devices_are_noticed(photos: Tensor) -> None:
    """Or the other tests of this file could not fail."""
    with pytest.raises(Exception, match="same device"):
        photos * torch.ones(BATCH, 1, 1, 1)


@pytest.mark.parametrize(
    "apply",
    [
        lambda images: transforms.crop_and_flip(images, whole(BATCH, 2), whole(BATCH).bool()),
        lambda images: transforms.jitter_colours(images / 255, real(4, BATCH)),
        lambda images: transforms.cut_out(images, whole(BATCH, 2), 8),
        lambda images: mixing.blend_images(images, draws()),
        lambda images: mixing.paste_boxes(images, draws()),
        lambda images: mixing.mix_labels(whole(BATCH), draws(), 10, 1024),
        lambda images: auto_augment.magnitudes_of(
            auto_augment.trivial_augment_ops(), whole(BATCH), whole(BATCH), real(BATCH)
        ),
        *(
            lambda images, side=side: Preprocess(side, (0.5,) * 3, (0.2,) * 3).to(CUDA)(images)
            for side in (16, 32, 64)
        ),
    ],
)
def test_augmentation_and_preprocessing_stay_on_the_device(
    apply: Callable[[Tensor], Tensor], photos: Tensor
) -> None:
    assert apply(photos).device.type == "cuda"


def draws() -> mixing.MixDraws:
    return mixing.MixDraws(whole(BATCH), real(BATCH), whole(BATCH, 4))


@pytest.mark.parametrize(
    "choice", auto_augment.trivial_augment_ops(), ids=lambda choice: choice.apply.__name__
)
def test_every_operation_of_the_policies_stays_on_the_device(
    choice: auto_augment.PolicyOp, photos: Tensor
) -> None:
    result = choice.apply(photos, real(BATCH))
    assert (result.device.type, result.dtype) == ("cuda", torch.uint8)


@pytest.mark.parametrize("optim", [Sgd(), AdamW()], ids=["sgd", "adamw"])
def test_a_loss_and_a_fused_optimiser(photos: Tensor, optim: Sgd | AdamW) -> None:
    model = ScratchModel(kind="wide_cnn")
    with CUDA:  # fake parameters cannot be moved
        classifier = build_model(model, 10)
    optimizer = build_optimizer(classifier, optim, Full())
    assert all(group["fused"] for group in optimizer.param_groups)
    build_schedule(optimizer, ScheduleConfig(), 10, 1)
    config = RunConfig(model=model, optim=optim)
    module = ClassifierModule(classifier, config, facts=None, num_batches=10)  # type: ignore[arg-type]
    loss = module.training_step((photos, mixing.mix_labels(whole(BATCH), draws(), 10, 1024)), 0)
    assert loss.device.type == "cuda"
    assert isinstance(module.train_means.loss_sum, Tensor), "nothing waits for the device"


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_is_taken_where_there_is_one(
    has_bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    resolved = machine.resolve_machine(TrainerConfig())
    assert (resolved.device.type, resolved.precision) == ("cuda", precision)


def test_tf32_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    machine.prepare_process(None, keep_memory=False)
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision(before)
