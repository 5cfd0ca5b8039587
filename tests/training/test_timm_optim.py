"""timm's optimisers by name: each trains, keeps the groups' rates and decays, and resumes to the bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm.optim
import torch
from torch import nn

from harness.config.compose import compose_run
from harness.config.finetune import Full
from harness.config.optim import TIMM_OPTIMISERS, TimmOptim
from harness.errors import ConfigError
from harness.models import ImageClassifier
from harness.models.preprocess import Preprocess
from harness.training.optimisation.optim import build_optimizer

# For `make test`, one of each family; `make test-slow` tries them all.
SOME = ("lion", "lamb", "muon", "adan", "adopt", "rmsproptf", "sgdw")


class Small(nn.Module):
    """A network with all that optimisers distinguish: a convolution, a norm, biases, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(4 * 36, 5)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images_BCHW))

    def get_classifier(self) -> nn.Module:
        return self.head


def start(name: str, **args: Any) -> tuple[ImageClassifier, torch.optim.Optimizer]:
    torch.manual_seed(0)
    classifier = ImageClassifier(Small(), Preprocess(8, (0.5,) * 3, (0.5,) * 3, "bilinear"))
    optim = TimmOptim(name=name, lr=0.01, weight_decay=0.05, args=args)
    return classifier, build_optimizer(classifier, optim, Full(backbone_lr_scale=0.5))


def train_steps(classifier: ImageClassifier, optimizer: torch.optim.Optimizer, num_steps: int = 4) -> float:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(16, 3, 8, 8, generator=generator), torch.arange(16) % 5
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(classifier(images), labels)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def assert_trains_and_resumes(name: str) -> None:
    classifier, optimizer = start(name)
    settings = {g["name"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert settings == {
        "backbone/decay": (0.005, 0.05),
        "backbone/no_decay": (0.005, 0.0),
        "head/decay": (0.01, 0.05),
        "head/no_decay": (0.01, 0.0),
    }
    before = train_steps(classifier, optimizer, 1)
    train_steps(classifier, optimizer)
    states = copy.deepcopy((classifier.state_dict(), optimizer.state_dict()))
    assert train_steps(classifier, optimizer) < before
    resumed = start(name)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    train_steps(*resumed)
    for key, tensor in classifier.state_dict().items():
        assert torch.equal(resumed[0].state_dict()[key], tensor), key


@pytest.mark.parametrize("name", SOME)
def test_an_optimiser_of_timm_trains_and_resumes(name: str) -> None:
    assert_trains_and_resumes(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*TIMM_OPTIMISERS} - {*SOME}))
def test_every_optimiser_of_timm_trains_and_resumes(name: str) -> None:
    assert_trains_and_resumes(name)


def test_the_names_are_timms_but_for_those_that_cannot_train_here() -> None:
    left_out = {name for name in timm.optim.list_optimizers() if name not in TIMM_OPTIMISERS}
    assert {*TIMM_OPTIMISERS} < {*timm.optim.list_optimizers()}
    assert {name for name in left_out if not name.startswith(("bnb", "fused", "kron"))} == {"adahessian"}


def test_it_steps_as_the_one_that_timm_makes_of_the_whole_network() -> None:
    ours, theirs = start("lion")[0], start("lion")[0]
    optim = TimmOptim(name="lion", lr=0.01, weight_decay=0.05, args={"betas": [0.95, 0.98]})
    train_steps(ours, build_optimizer(ours, optim, Full()))
    groups = timm.optim.param_groups_weight_decay(theirs, 0.05)
    train_steps(theirs, timm.optim.Lion(groups, lr=0.01, betas=(0.95, 0.98)))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_settings_are_checked() -> None:
    timms = ["data=digits", "model=lenet", "optim=timm"]
    with pytest.raises(ConfigError, match="did you mean 'lion' or"):
        compose_run([*timms, "optim.name=lian"])
    with pytest.raises(ConfigError, match=r"optim\.name is not set"):
        compose_run(timms)
    config = compose_run([*timms, "optim.name=lion", "optim.args={betas: [0.8, 0.9]}"])
    assert config.optim.args == {"betas": [0.8, 0.9]}  # type: ignore[union-attr]
    assert config == type(config).model_validate(config.to_dict())
    with pytest.raises(ConfigError, match=r"lion rejects optim\.args=.* unexpected keyword argument 'beta'"):
        start("lion", beta=0.5)
