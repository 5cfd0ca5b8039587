"""Gradients are clipped whatever the optimiser and the precision, at their norm without fp16's scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from harness.config.schema import RunConfig, ScratchModel
from harness.data import load_splits
from harness.data.datamodule import ImageDataModule
from harness.models import build_model
from harness.models.timm_parts import clip_adaptively
from harness.training.devices.machine import resolve_machine
from harness.training.module import ClassifierModule
from harness.training.prepare import prepare_model
from harness.training.train import model_facts

Config = Callable[..., RunConfig]
Run = Callable[..., tuple]
CLIP = 0.01  # far below any gradient's norm in an untrained network
SHORT = ("trainer.max_epochs=1", "data.max_train_samples=60", "data.batch_size=20", "trainer.device=cpu")


@pytest.fixture
def norms() -> Iterator[list[float]]:
    """The norm of the gradients that each step took."""
    found: list[float] = []

    def look(optimizer: Optimizer, *_: object) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        found.append(float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()))

    handle = register_optimizer_step_post_hook(look)
    yield found
    handle.remove()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw", "muon"])
def test_every_optimiser_steps_along_a_clipped_gradient(
    run: Run, tiny_config: Config, norms: list[float], optim: str, precision: str
) -> None:
    how = (f"optim={optim}", f"optim.clip_grad_norm={CLIP}", f"trainer.precision={precision}")
    result, tracker = run(tiny_config(*SHORT, *how))

    assert (result.status, tracker.params["machine.precision"]) == ("finished", precision)
    assert norms == pytest.approx([CLIP] * 3, rel=1e-3)


def test_a_gradient_below_the_bound_is_left_alone(run: Run, tiny_config: Config, tmp_path: Path) -> None:
    how = (*SHORT, "optim=adamw", "trainer.precision=bf16")
    bounded, _ = run(tiny_config(*how, "optim.clip_grad_norm=1e6"), "bounded")
    free, _ = run(tiny_config(*how), "free")

    assert bounded.metrics["train/loss"] == free.metrics["train/loss"]


@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw", "muon"])
def test_with_fp16_the_scale_is_taken_away_before(
    tiny_config: Config, norms: list[float], tmp_path: Path, optim: str
) -> None:
    """On the CPU, whose scaler and fused optimisers do what CUDA's do; a run would choose bf16 here."""
    how: tuple[str, ...] = (f"optim={optim}", "optim.schedule.kind=constant", "augment=none")
    if optim == "sgd":
        how = (*how, "optim.momentum=0", "optim.nesterov=false", "optim.weight_decay=0")
    config = tiny_config(*SHORT, *how, f"optim.clip_grad_norm={CLIP}")
    splits = load_splits(config.data)
    classifier, _ = prepare_model(config, splits)
    assert resolve_machine(config.trainer).device.type == "cpu"
    before = [parameter.detach().clone() for parameter in classifier.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer = pl.Trainer(
        accelerator="cpu",
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        max_steps=1,
        gradient_clip_val=config.optim.clip_grad_norm,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(
        ClassifierModule(classifier, config, model_facts(config, splits), 3),
        ImageDataModule(splits, config.data, config.augment, config.seed),
    )

    assert norms == pytest.approx([CLIP], rel=1e-3)
    if optim == "sgd":  # whose step is the gradient times the rate, so that no scale is left in it
        steps: list[Tensor] = [
            (now.detach() - then).flatten() for now, then in zip(classifier.parameters(), before, strict=True)
        ]
        assert float(torch.cat(steps).norm()) == pytest.approx(config.optim.lr * CLIP, rel=1e-3)


def test_values_are_clipped(run: Run, tiny_config: Config) -> None:
    largest: list[float] = []

    def look(optimizer: Optimizer, *_: object) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        largest.append(max(float(p.grad.abs().max()) for p in parameters if p.grad is not None))

    handle = register_optimizer_step_post_hook(look)
    try:
        run(tiny_config(*SHORT, f"optim.clip_grad_value={CLIP}"))
    finally:
        handle.remove()
    assert largest == pytest.approx([CLIP] * 3)


def test_rows_of_weights_are_clipped_adaptively_but_for_the_head() -> None:
    torch.manual_seed(0)
    network = build_model(ScratchModel(kind="lenet"), 10).network
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    clip_adaptively(network, 0.01)
    for name, parameter in network.named_parameters():
        gradient, weight = before[name], parameter.detach()
        assert parameter.grad is not None
        if name.startswith("head."):
            assert torch.equal(parameter.grad, gradient)
            continue
        rows = slice(None) if weight.ndim > 1 else None
        sizes = [
            tensor.flatten(1).norm(dim=1) if rows is not None else tensor.norm().expand(len(tensor))
            for tensor in (gradient, weight)
        ]
        bound = 0.01 * sizes[1].clamp(min=1e-3)
        factor = (bound / sizes[0]).clamp(max=1.0)
        expected = gradient * factor.view(-1, *[1] * (weight.ndim - 1))
        assert torch.allclose(parameter.grad, expected, rtol=1e-4), name
