"""Every family of timm, a model each: it freezes by every policy, or says why not."""

from __future__ import annotations

import pytest
import timm
import torch

from harness.config.finetune import Full, LinearProbe, Partial
from harness.config.schema import FinetuneConfig
from harness.errors import ModelError
from harness.models import ImageClassifier, apply_freezing
from harness.models.preprocess import Preprocess
from harness.models.protocol import head_names

POLICIES: tuple[FinetuneConfig, ...] = (
    Full(),
    LinearProbe(),
    *(Partial(trainable_groups=k) for k in (1, 2)),
)


def families() -> list[str]:
    """Return the first model by name of each family: same module of timm, same first part of the name."""
    first: dict[tuple[str, str], str] = {}
    for name in sorted(timm.list_models()):
        module = timm.models.model_entrypoint(name).__module__
        first.setdefault((module, name.partition("_")[0]), name)
    return list(first.values())


def freeze_by_every_policy(name: str) -> list[str]:
    """Freeze a model by one policy after the other; return what was refused, a line each."""
    refusals = []
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=5)
        classifier = ImageClassifier(network, Preprocess(32, (0.5,) * 3, (0.5,) * 3))
    parameters = {key for key, _ in network.named_parameters()}
    head = head_names(network) & parameters
    for finetune in POLICIES:
        try:
            report = apply_freezing(classifier, finetune)
        except ModelError as error:
            refusals.append(str(error))
            continue
        training = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
        match finetune.kind:
            case "full":
                assert training == parameters
            case "linear_probe":
                assert training == head
            case "partial":
                assert head < training <= parameters
        counted = sum(parameter.numel() for parameter in network.parameters())
        assert report.trainable_parameters + report.frozen_parameters == counted
    return refusals


@pytest.mark.slow
def test_every_family_builds_and_freezes_by_every_policy_or_says_why_not() -> None:
    refused = {name: lines for name in families() if (lines := freeze_by_every_policy(name))}
    print(f"{len(families())} families freeze; these not by finetune=partial: {', '.join(refused)}")
    assert len(families()) >= len(timm.list_modules())
    for name, lines in refused.items():
        reasons = (
            "timm does not divide",
            "finetune.trainable_groups=",
        )  # the second: fewer than were asked for
        assert all(line.startswith(reasons) for line in lines), name
