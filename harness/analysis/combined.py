"""Several models as one: the mean of their probabilities, greedy selection, the gain over the best member.

`harness.training.commands.ensemble` makes and records ensembles and soups with the functions here; a
`Combined` is what it returns. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, logsumexp

from harness.analysis.optimism import wilson
from harness.analysis.paired import compare_images
from harness.analysis.predictions import Predictions
from harness.config.monitor import MonitorConfig

MOST_ROUNDS = 4  # × the number of candidates: how often greedy selection adds a model


@dataclass(frozen=True)
class Member:
    """A model of an ensemble or a soup."""

    run_id: str
    name: str
    weight: float  # its share of the mean; 0: it was not chosen
    score: float  # on the validation images, by the metric that the members were chosen by
    checkpoint: str


@dataclass(frozen=True)
class Gain:
    """How much more accurate the whole is than its best member, on the same images."""

    over: str  # the name of the member that is best on the validation images
    accuracy: float  # of the whole
    member_accuracy: float
    difference: float
    low: float  # of the 95 % interval over images, by a paired bootstrap
    high: float
    p_value: float  # of the exact McNemar test
    num_images: int
    num_correct: int

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.4f}, {self.difference:+.2%} over {self.over} "
            f"({self.member_accuracy:.4f}; 95 % interval {self.low:+.2%} to {self.high:+.2%} over "
            f"{self.num_images:,} images; exact McNemar p = {self.p_value:.2g})"
        )


@dataclass(frozen=True)
class Combined:
    """Several models as one, and what that is worth."""

    run_id: str
    name: str
    kind: str  # "ensemble": mean probabilities; "soup": mean weights
    is_greedy: bool  # whether the members were chosen on the validation images, or all candidates taken
    sweep: str | None  # whose trials the members are
    metric: str  # that the members were ranked and chosen by
    members: tuple[Member, ...]  # every candidate, best first
    metrics: dict[str, float]  # "val/accuracy", … and "test/accuracy", … if it was tested
    val_gain: Gain
    test_gain: Gain | None = None
    reading: int | None = None  # which reading of the test split that was, for the sweep or the run, from 1
    checkpoint: str | None = None  # of a soup
    notes: tuple[str, ...] = ()
    is_new: bool = True  # False: found by an earlier call, and only shown by this one

    def __str__(self) -> str:
        chosen = [member for member in self.members if member.weight]
        what = "mean weights" if self.kind == "soup" else "mean probabilities"
        how = f"chosen from {len(self.members)} by {self.metric}" if self.is_greedy else "all that were named"
        lines = [
            f"{self.name}: {what} of {len(chosen)} model{'s' * (len(chosen) > 1)}, {how}",
            *(f"  {one.weight:6.1%}  {one.name}  {self.metric} {one.score:.4f}" for one in chosen),
            f"validation: {self.val_gain}",
        ]
        if self.test_gain is not None:
            low, high = wilson(self.test_gain.accuracy, self.test_gain.num_images)
            lines.append(
                f"test: {self.test_gain}; 95 % interval of the accuracy {low:.4f} to {high:.4f}; reading "
                f"{self.reading} of the test split for this {'sweep' if self.sweep else self.kind}"
            )
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(
            [*lines, f"run {self.run_id}" + f", checkpoint {self.checkpoint}" * bool(self.checkpoint)]
        )


def mean_probabilities(logits_MNK: Sequence[np.ndarray], weights_M: Sequence[float]) -> np.ndarray:
    """Return the logarithm of the weighted mean of several models' probabilities, float64 (N, K).

    Args:
        logits_MNK: of each model, (N, K).
        weights_M: not negative, not all 0; they need not sum to 1.
    """
    chosen = [place for place, weight in enumerate(weights_M) if weight]
    shares = np.array([weights_M[place] for place in chosen], dtype=np.float64)
    logs = np.stack([log_softmax(logits_MNK[place].astype(np.float64), axis=1) for place in chosen])
    return np.asarray(logsumexp(logs, axis=0, b=(shares / shares.sum())[:, None, None]))


def select_greedily(
    logits_MNK: Sequence[np.ndarray], score: Callable[[np.ndarray], float], monitor: MonitorConfig
) -> list[int]:
    """Return how often each model is in the best ensemble that greedy selection with replacement finds.

    Beginning with none, each round adds the model whose probabilities make the mean best; of all rounds the
    best is kept, of equal ones the first.

    Source: R. Caruana et al., "Ensemble selection from libraries of models", ICML 2004.

    Args:
        logits_MNK: of each model, (N, K), the best model first: of equal candidates the first is added.
        score: of the logarithms of mean probabilities, (N, K).
    """
    num_models = len(logits_MNK)
    counts, rounds, scores = [0] * num_models, [], []
    for _ in range(MOST_ROUNDS * num_models):
        tried = [
            score(mean_probabilities(logits_MNK, [n + (place == one) for place, n in enumerate(counts)]))
            for one in range(num_models)
        ]
        added = monitor.best(tried)
        counts[added] += 1
        rounds.append(list(counts))
        scores.append(tried[added])
    return rounds[monitor.best(scores)]


def compare_with(whole: Predictions, member: Predictions, label: str) -> Gain:
    """Return how much more accurate the whole is than a member, on the same images."""
    report = compare_images({"whole": whole, "member": member})
    assert report is not None
    pair = report.pairs[0]
    difference, low, high = pair.difference, pair.low, pair.high
    if pair.first != "whole":
        difference, low, high = -difference, -high, -low
    right, members_right = float(whole.correct.mean()), float(member.correct.mean())
    count = len(whole)
    return Gain(
        label, right, members_right, difference, low, high, pair.p_value, count, int(whole.correct.sum())
    )
