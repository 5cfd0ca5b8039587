"""Training on mixed labels: what the loss and the accuracy make of them, and that a resume repeats it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from harness.config.schema import RunConfig
from harness.training.checkpoints.checkpoint import load_checkpoint
from harness.training.module import ClassifierModule, RunningMeans
from tests.training.conftest import stop_after

SMOOTHING = 0.1


def test_the_loss_is_the_mean_of_both_labels_losses_by_their_weights(
    tiny_config: Callable[..., RunConfig],
) -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    own, other = torch.tensor([0, 1, 2, 3]), torch.tensor([5, 1, 7, 8])
    shares = torch.tensor([1.0, 0.4, 0.7, 0.25])
    targets = torch.zeros(4, 10)
    for row in range(4):
        targets[row, own[row]] += shares[row]
        targets[row, other[row]] += 1 - shares[row]
    config = tiny_config(f"optim.label_smoothing={SMOOTHING}")
    module = ClassifierModule(nn.Identity(), config, facts=None, num_batches=1)  # type: ignore[arg-type]
    loss = module.training_step((logits, targets), 0)

    log_p = logits.log_softmax(1)
    expected = 0.0
    for row in range(4):
        for label, weight in ((own[row], shares[row]), (other[row], 1 - shares[row])):
            smooth = (1 - SMOOTHING) * log_p[row, label] + SMOOTHING * log_p[row].mean()
            expected -= float(weight * smooth) / 4
    assert math.isclose(float(loss), expected, rel_tol=1e-5)


def test_accuracy_counts_against_the_dominant_label() -> None:
    means = RunningMeans()
    logits = torch.eye(3)
    probabilities = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.3, 0.4], [0.1, 0.0, 0.9]])
    means.update(torch.tensor(1.0), logits, probabilities)
    assert means.compute()[1] == 2 / 3
    means.update(torch.tensor(1.0), logits, torch.tensor([0, 1, 0]))
    assert means.compute()[1] == 4 / 6


def test_an_interrupted_run_on_mixed_images_ends_as_an_uninterrupted_one(
    run: Callable[..., tuple], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config("trainer.max_epochs=3", "augment=mix", "optim.label_smoothing=0.1")
    run(config, "whole")
    first, _ = run(config, "parts", **stop_after(1))
    assert first.status == "interrupted"
    run(config, "parts")
    whole, parts = (load_checkpoint(tmp_path / name / "last.ckpt").state_dict for name in ("whole", "parts"))
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
