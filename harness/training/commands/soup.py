"""Weight soups: the mean of the weights of several runs of one network, as a checkpoint like any other.

`ensemble.py` calls `check_alike` and `make_soup`. The statistics of batch norms that trained are computed
anew, as for an SWA (`averaging.py`), because those of the members do not fit the mean of their weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.analysis.metrics import split_metrics
from harness.config.monitor import MonitorConfig
from harness.data import load_splits
from harness.data.datamodule import ImageDataModule
from harness.errors import CheckpointError
from harness.models import ImageClassifier
from harness.models.sync_norm import batch_norms
from harness.training.callbacks import BEST
from harness.training.checkpoints.checkpoint import PREFIX, SECTION, Checkpoint, load_raw, restore_classifier
from harness.training.checkpoints.checkpoint_io import AtomicCheckpointIO
from harness.training.devices.machine import Machine, machine_at_hand
from harness.training.evaluate import predict
from harness.training.optimisation.averaging import recompute_statistics

MOST_IMAGES = 10_000  # training images that the statistics are computed from
States = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Soup:
    """The mean of some of the candidates' weights, and what it answers to the validation images."""

    weights: list[float]  # of each candidate: 1, or 0 where it is no member
    logits: np.ndarray  # float32 (N, K)
    path: Path
    notes: tuple[str, ...]


def check_alike(checkpoints: Mapping[str, Checkpoint]) -> None:
    """Refuse to average the weights of different networks.

    Args:
        checkpoints: by the runs' names.

    Raises:
        CheckpointError: networks, sizes of images or normalisation differ.
    """
    (first, one), *others = checkpoints.items()
    expected, shapes = _description(one), _shapes(one)
    for name, other in others:
        found = _description(other)
        what = next((key for key in expected if found[key] != expected[key]), None)
        if what is not None:
            why = f"the {what} of {first} is {expected[what]}, that of {name} {found[what]}"
        elif differing := sorted(set(shapes.items()) ^ set(_shapes(other).items())):
            why = f"{differing[0][0]} has not the same shape in {first} and in {name}"
        else:
            continue
        raise CheckpointError(
            f"weights can only be averaged of one network: {why}; choose runs of one network, or average "
            "their probabilities (leave --soup out)"
        )


def _description(checkpoint: Checkpoint) -> dict[str, str]:
    model = checkpoint.config.model
    inside = restore_classifier(checkpoint).preprocess.extra_repr()
    return {"network": str(getattr(model, "name", model.kind)), "preprocessing": inside}


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in checkpoint.state_dict.items()}


def make_soup(
    checkpoints: Sequence[Checkpoint],
    folder: Path,
    first_score: float,
    monitor: MonitorConfig,
    *,
    greedy: bool,
    show: Callable[[str], None],
) -> Soup:
    """Average weights and write the checkpoint `best.ckpt` into a folder.

    Its configuration is the first candidate's, which is what the network and its data are described by.

    Source: M. Wortsman et al., "Model soups", ICML 2022, https://arxiv.org/abs/2203.05482; greedy: recipe 1.

    Args:
        checkpoints: of the candidates, best first.
        first_score: of the first, on the validation images.
        monitor: the metric of that score, by which a greedy soup chooses.
        greedy: take a candidate only if the mean is then no worse on the validation images.
        show: called with a line about each candidate that is tried.
    """
    first = checkpoints[0]
    kitchen = _Blender.of(first, monitor)
    states = [one.state_dict for one in checkpoints]
    members, best = list(range(len(states))), first_score
    classifier: ImageClassifier
    if greedy:
        members = [0]
        classifier, logits = kitchen.blend([states[0]])
        for place in range(1, len(states)):
            tried, answers = kitchen.blend([states[one] for one in (*members, place)])
            score = kitchen.score(answers)
            is_taken = kitchen.monitor.best([score, best]) == 0  # of equals the first: no worse
            show(
                f"with candidate {place + 1} {kitchen.monitor.metric} is {score:.4f}, without it {best:.4f}: "
                f"{'it stays in' if is_taken else 'it is left out'}"
            )
            if is_taken:
                members, best, classifier, logits = [*members, place], score, tried, answers
    else:
        classifier, logits = kitchen.blend(states)
    path, own = folder / BEST, first.config.trainer.monitor  # by which its checkpoint says the score
    section = {**load_raw(first.path)[SECTION], "score": kitchen.score(logits, own)}
    state = {PREFIX + name: tensor.cpu() for name, tensor in classifier.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, SECTION: section}, path)
    weights = [float(place in members) for place in range(len(states))]
    return Soup(weights, logits, path, tuple(_notes(checkpoints, kitchen, members)))


def _notes(checkpoints: Sequence[Checkpoint], kitchen: _Blender, members: list[int]) -> Iterator[str]:
    if not checkpoints[0].config.model.is_pretrained:
        yield (
            "the members began from random weights, not from the same pretrained ones: means of such weights "
            "seldom make a good model"
        )
    if differing_norms([checkpoints[place].state_dict for place in members]):
        yield (
            f"the statistics of the batch norms that trained were computed anew on {kitchen.num_seen:,} "
            "training images"
        )


def differing_norms(states: States) -> set[str]:
    """Return the names of the norms whose statistics the members do not share.

    Those that were frozen have the same in all members, which are right for the frozen layers below.
    """
    names = [name for name in states[0] if name.endswith(("running_mean", "running_var"))]
    return {
        name.rpartition(".")[0]
        for name in names
        if any(not torch.equal(state[name], states[0][name]) for state in states[1:])
    }


def mean_state(states: States) -> dict[str, Tensor]:
    """Return the mean of each tensor, computed in float64; of counts, the first's."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in states[0].items()
    }


@dataclass(frozen=True)
class _Blender:
    """Makes classifiers of means of weights, on this machine's device, and lets them answer."""

    checkpoint: Checkpoint  # whose configuration they have
    monitor: MonitorConfig
    data: ImageDataModule
    machine: Machine

    @classmethod
    def of(cls, checkpoint: Checkpoint, monitor: MonitorConfig) -> _Blender:
        config = checkpoint.config
        data = ImageDataModule(load_splits(config.data), config.data, config.augment, config.seed)
        machine = machine_at_hand(config.trainer, restore_classifier(checkpoint).network)
        return cls(checkpoint, monitor, data, machine)

    @property
    def num_seen(self) -> int:
        """How many training images the statistics are computed from."""
        return min(self._num_batches * self.checkpoint.config.data.batch_size, len(self.data.epochs))

    @property
    def _num_batches(self) -> int:
        return -(-MOST_IMAGES // self.checkpoint.config.data.batch_size)

    def blend(self, states: States) -> tuple[ImageClassifier, np.ndarray]:
        """Return the classifier with the mean of the weights, and its logits for the validation images."""
        classifier = restore_classifier(self.checkpoint)
        classifier.load_state_dict(mean_state(states))
        classifier.to(self.machine.device)
        differing, norms = differing_norms(states), batch_norms(classifier)
        followed = [norm for name, norm in classifier.named_modules() if name in differing and norm in norms]
        recompute_statistics(classifier, followed, self._images())
        config = self.checkpoint.config
        logits, _ = predict(
            classifier, self.data.splits.val, self.machine, config.data.batch_size, config.evaluation.tta
        )
        return classifier, logits

    def score(self, logits_NK: np.ndarray, monitor: MonitorConfig | None = None) -> float:
        found = split_metrics(logits_NK, self.data.splits.val.labels)
        return found[(monitor or self.monitor).metric.removeprefix("val/")]

    def _images(self) -> Iterator[Tensor]:
        """Yield training images as the first candidate was trained on them."""
        return itertools.islice(self.data.images_again(0, self.machine.device), self._num_batches)
