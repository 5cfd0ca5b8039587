"""Sharpness-aware minimisation against its formula, over accumulated batches, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.data import load_splits
from harness.data.datamodule import ImageDataModule
from harness.training.checkpoints.checkpoint import load_checkpoint, load_raw
from harness.training.flops import count_image_flops
from harness.training.prepare import prepare_model
from tests.training.conftest import stop_after

Config = Callable[..., RunConfig]
Run = Callable[..., tuple]
RHO = 0.5  # of the usual 0.05 so many steps show little
HOW = (
    "trainer.precision=fp32",
    "trainer.max_epochs=1",
    "data.max_train_samples=75",  # batches of 32, 32, 11
    "data.batch_size=32",
    "augment=none",
    "optim=sgd",
    "optim.lr=0.05",
    "optim.weight_decay=0",
    "optim.schedule.kind=constant",
    "trainer.select=last",
    f"optim.sam_rho={RHO}",
)
# Two steps alone, because this network magnifies differences in the last bit.
WITH_NORMS = (
    *("model=timm", "model.name=test_efficientnet", "model.image_size=32", "model.pretrained=false"),
    "data.max_train_samples=43",
)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_checkpoint(folder / "last.ckpt").state_dict


def trained_by_hand(config: RunConfig) -> dict[str, Tensor]:
    """Return the weights after an epoch of SAM as in Foret et al. (2021), algorithm 1, with torch's SGD."""
    splits = load_splits(config.data)
    pl.seed_everything(config.seed, verbose=False)
    classifier, _ = prepare_model(config, splits)
    classifier.train()
    parameters = list(classifier.parameters())
    buffers = dict(classifier.named_buffers())
    sgd = torch.optim.SGD(parameters, config.optim.lr, momentum=0.9, nesterov=True)
    data = ImageDataModule(splits, config.data, config.augment, config.seed)
    for images, labels in data.train_batches(lambda: 0):
        gradients = torch.autograd.grad(F.cross_entropy(classifier(images), labels), parameters)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        here = [parameter.detach().clone() for parameter in parameters]
        statistics = {name: buffer.clone() for name, buffer in buffers.items()}
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(RHO * gradient / norm)
        sgd.zero_grad()
        F.cross_entropy(classifier(images), labels).backward()
        with torch.no_grad():
            for parameter, weight in zip(parameters, here, strict=True):
                parameter.copy_(weight)
            for name, buffer in buffers.items():
                buffer.copy_(statistics[name])
        sgd.step()
    return classifier.state_dict()


@pytest.mark.parametrize("model", [(), WITH_NORMS])
def test_it_is_the_formula(run: Run, tiny_config: Config, tmp_path: Path, model: tuple[str, ...]) -> None:
    """Batch norms follow the batches once, at the weights that are kept."""
    config = tiny_config(*HOW, *model)
    run(config)
    run(tiny_config(*HOW, *model, "optim.sam_rho=null"), "plain")
    expected, plain = trained_by_hand(config), weights(tmp_path / "plain")
    differences = []
    for name, tensor in weights(tmp_path / "run").items():
        torch.testing.assert_close(
            tensor, expected[name], atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
        differences.append(float((tensor - plain[name]).abs().max()))
    assert max(differences) > 0.01


def test_batches_that_are_accumulated_are_one_large_batch(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    """Uphill, too; with clipping, of the second gradient. The training metrics count each image once."""
    how = (*HOW, "trainer.max_epochs=2", "optim.clip_grad_norm=0.5")
    _, whole = run(tiny_config(*how), "whole")
    _, parts = run(tiny_config(*how, "data.batch_size=16", "optim.accumulate_batches=2"), "parts")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.allclose(weights(tmp_path / "parts")[name], tensor, atol=1e-5), name
    for epoch in range(2):
        assert parts.epochs[epoch]["train/loss"] == pytest.approx(whole.epochs[epoch]["train/loss"], rel=1e-4)
        assert parts.epochs[epoch]["train/accuracy"] == whole.epochs[epoch]["train/accuracy"]


def test_a_resumed_run_is_the_uninterrupted_one(run: Run, tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(*HOW, "trainer.max_epochs=3", "data.batch_size=16", "optim.accumulate_batches=2")
    run(config, "whole")
    assert run(config, **stop_after(1))[0].status == "interrupted"
    run(config)
    whole, parts = (load_raw(tmp_path / folder / "last.ckpt")["state_dict"] for folder in ("whole", "run"))
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []


def test_its_operations_are_twice_those_of_the_optimiser_alone() -> None:
    plain, sam = (
        compose_run(["data=digits", "model=lenet", f"optim.sam_rho={rho}"]) for rho in ("null", 0.05)
    )
    assert count_image_flops(sam, 10, None).step == 2 * count_image_flops(plain, 10, None).step
