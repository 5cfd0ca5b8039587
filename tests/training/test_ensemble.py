"""Ensembles and soups: scikit-learn's mean of probabilities, means of state dicts, one reading of a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import VotingClassifier
from torch import Tensor
from torch.optim.swa_utils import update_bn

from harness.analysis.combined import compare_with, mean_probabilities, select_greedily
from harness.analysis.paired import bootstrap_difference
from harness.analysis.predictions import predictions_of
from harness.cli.main import main
from harness.config.compose import compose_run
from harness.config.monitor import MonitorConfig
from harness.config.schema import RunConfig, TrackingConfig
from harness.data import load_splits
from harness.data.datamodule import ImageDataModule
from harness.data.held_out import load_test
from harness.errors import CheckpointError, HarnessError, TrackingError
from harness.export import export_run
from harness.models import ImageClassifier, build_model
from harness.tracking import names
from harness.tracking.artifacts import load_predictions
from harness.tracking.runs import get_run, read_ledger
from harness.tracking.store import RunStore, open_store
from harness.training.checkpoints.checkpoint import PREFIX, SECTION, load_checkpoint, restore_classifier
from harness.training.checkpoints.checkpoint_io import AtomicCheckpointIO
from harness.training.commands.ensemble import combine
from harness.training.commands.soup import mean_state
from harness.training.evaluate import evaluate_checkpoint, evaluate_run
from harness.training.train import model_facts

RNG = np.random.default_rng(0)
LOGITS = [3 * RNG.normal(size=(40, 4)) for _ in range(5)]
LABELS = RNG.integers(0, 4, 40)
SMALL = (
    "data=digits",
    "data.batch_size=64",
    "augment=none",
    "trainer.precision=fp32",
    "evaluation.pictures=none",
    "tracking.log_model=false",
)
LENET, RESNET = ("model=lenet",), ("model=timm", "model.name=test_resnet", "model.image_size=32")


# ── the mean, the selection, the gain ─────────────────────────────────────────────────────────────


class Fixed(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A model of scikit-learn's that answers with given probabilities."""

    def __init__(self, place: int = 0) -> None:
        self.place = place

    def fit(self, images: np.ndarray, labels: np.ndarray) -> Fixed:
        self.classes_ = np.unique(labels)
        return self

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        odds = np.exp(LOGITS[self.place])
        return np.asarray(odds / odds.sum(1, keepdims=True))


def test_the_mean_is_scikit_learns_soft_vote() -> None:
    weights = [1, 0, 2.5, 1, 0]
    vote = VotingClassifier(
        [(str(place), Fixed(place)) for place in range(5)], voting="soft", weights=weights
    )
    expected = vote.fit(np.zeros((40, 1)), np.arange(40) % 4).predict_proba(np.zeros((40, 1)))
    np.testing.assert_allclose(np.exp(mean_probabilities(LOGITS, weights)), expected, rtol=1e-12)


@pytest.mark.parametrize("metric", ["val/accuracy", "val/loss"])
def test_greedy_selection_is_the_published_one(metric: Any) -> None:
    """Written out: a bag of models, to which each round adds the one that makes it best."""
    monitor = MonitorConfig.model_validate({"metric": metric})
    sign = -1.0 if metric == "val/loss" else 1.0

    def score(log_probabilities: np.ndarray) -> float:
        if metric == "val/loss":
            return float(-log_probabilities[np.arange(40), LABELS].mean())
        return float((log_probabilities.argmax(1) == LABELS).mean())

    probabilities = [Fixed(place).predict_proba(LABELS) for place in range(5)]
    bag: list[int] = []
    history = []
    for _ in range(20):
        tried = [
            sign * score(np.log(np.mean([probabilities[one] for one in [*bag, new]], 0))) for new in range(5)
        ]
        bag.append(int(np.argmax(np.round(tried, 12))))
        history.append((round(max(tried), 12), list(bag)))
    best = max(value for value, _ in history)
    expected = next(bag for value, bag in history if value == best)
    found = select_greedily(LOGITS, score, monitor)
    assert found == [expected.count(place) for place in range(5)]
    assert sign * score(mean_probabilities(LOGITS, found)) >= max(
        sign * score(np.log(p)) for p in probabilities
    )


def test_a_gain_is_paired_and_may_be_a_loss() -> None:
    good = predictions_of(10 * np.eye(4)[LABELS], LABELS, split="val", class_names="abcd")
    worse = predictions_of(LOGITS[0], LABELS, split="val", class_names="abcd")
    alone = int((~worse.correct).sum())
    low, high = bootstrap_difference(alone, 0, 40)
    gain, loss = compare_with(good, worse, "one"), compare_with(worse, good, "one")
    assert (gain.difference, gain.low, gain.high) == (alone / 40, low, high)
    assert (loss.difference, loss.low, loss.high) == (-alone / 40, -high, -low)
    assert (loss.accuracy, loss.member_accuracy, loss.num_correct) == (1 - alone / 40, 1.0, 40 - alone)


def test_the_mean_of_weights_keeps_counts_and_types() -> None:
    states = [{"w": torch.full((2,), value).half(), "n": torch.tensor(7)} for value in (0.5, 1.0, 3.0)]
    mean = mean_state(states)
    assert torch.equal(mean["w"], torch.full((2,), 1.5).half())
    assert (mean["w"].dtype, int(mean["n"])) == (torch.float16, 7)


# ── recorded runs ─────────────────────────────────────────────────────────────────────────────────


@dataclass
class Recorded:
    """A store of runs whose networks have random features and a head that was fitted to the digits."""

    tracking: TrackingConfig
    store: RunStore
    parent: str
    lines: list[str]

    def combine(self, *references: str, **options: Any) -> Any:
        return combine(self.tracking, references or ("mine",), show=self.lines.append, **options)

    def checkpoint(self, run_id: str) -> Path:
        return Path(self.tracking.dir) / "checkpoints" / run_id / "best.ckpt"

    def add(
        self,
        trial: int | None,
        *settings: str,
        change: Callable[[ImageClassifier], None] | None = None,
        classes: tuple[str, ...] | None = None,
    ) -> str:
        config = compose_run([*SMALL, *(settings or LENET)])
        splits = load_splits(config.data)
        classifier = fitted(config)
        if change is not None:
            change(classifier)
        of_trial = {
            names.KIND: "trial",
            names.SWEEP: "mine",
            names.TRIAL: str(trial),
            names.OUTCOME: "complete",
        }
        tags = {names.KIND: "train"} if trial is None else of_trial
        parent = None if trial is None else self.parent
        name = f"run-{settings[0]}" if trial is None else f"trial-{trial}"
        tracker = self.store.start_run(name, "digits", tags, parent_run_id=parent)
        path = self.checkpoint(tracker.run_id)
        facts = model_facts(config, splits).to_dict() | ({"class_names": list(classes)} if classes else {})
        state = {PREFIX + key: value for key, value in classifier.state_dict().items()}
        content = {"state_dict": state, SECTION: {**facts, "epoch": 0, "score": 0.5}}
        AtomicCheckpointIO().save_checkpoint(content, path)
        metrics = evaluate_checkpoint(path, split="val", tracker=tracker)
        tracker.set_tags({names.CHECKPOINT: str(path), names.SCORE: str(metrics["val/accuracy"])})
        tracker.log_summary({names.BEST_EPOCH: 0})
        tracker.finish("FINISHED")
        return tracker.run_id


def fitted(config: RunConfig) -> ImageClassifier:
    """Return a network of random features, whose last layer least squares has fitted to 300 images."""
    splits = load_splits(config.data)
    torch.manual_seed(0)  # the same start for all, as fine-tuned networks have
    classifier = build_model(config.model, 10, mean=splits.mean, std=splits.std).eval()
    images = torch.from_numpy(splits.train.gather(slice(300))).permute(0, 3, 1, 2)
    head: Any = list(classifier.network.modules())[-1]
    assert isinstance(head, torch.nn.Linear)
    seen: list[Tensor] = []
    hook = head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        classifier(images)
        hook.remove()
        features = torch.cat([seen[0], torch.ones(len(images), 1)], 1)
        chosen = torch.randperm(300, generator=generator)[:150]  # by which the members differ
        targets = 4.0 * torch.eye(10)[torch.from_numpy(splits.train.labels[:300])]
        ridge = 1e-2 * torch.eye(features.shape[1])
        taken = features[chosen]
        solved = torch.linalg.solve(taken.T @ taken + ridge, taken.T @ targets[chosen])
        head.weight.copy_(solved[:-1].T)
        head.bias.copy_(solved[-1])
    return classifier


@pytest.fixture
def recorded(made_store: None) -> Recorded:
    """A sweep of two trials."""
    tracking = compose_run(["data=digits"]).tracking
    store = open_store(tracking)
    tags = {
        names.KIND: "sweep",
        names.SWEEP: "mine",
        names.METRIC: "val/accuracy",
        names.DIRECTION: "maximize",
    }
    parent = store.start_run("mine", "digits", tags)
    found = Recorded(tracking, store, parent.run_id, [])
    for trial in range(2):
        found.add(trial, *LENET, f"seed={trial}")
    parent.finish("FINISHED")
    return found


@pytest.mark.slow
def test_an_ensemble_of_a_sweeps_best_is_recorded_and_tested_once(recorded: Recorded) -> None:
    found = recorded.combine(top=2)
    assert (found.kind, found.sweep, found.test_gain, found.is_new) == ("ensemble", "mine", None, True)
    assert [member.weight for member in found.members] == [0.5, 0.5]
    scores = [member.score for member in found.members]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.6
    answers = [
        load_predictions(recorded.tracking, get_run(recorded.tracking, one.run_id)) for one in found.members
    ]
    mean = np.mean([np.exp(one.log_probabilities) for one in answers], axis=0)
    assert found.metrics["val/accuracy"] == (mean.argmax(1) == answers[0].labels).mean()
    assert found.val_gain.difference == pytest.approx(found.metrics["val/accuracy"] - scores[0])
    assert "were chosen on these validation images" in found.notes[0]
    run = get_run(recorded.tracking, found.run_id)
    assert (run.kind, run.parent_run_id, run.status) == ("ensemble", recorded.parent, "FINISHED")
    assert run.results["val/accuracy"] == found.metrics["val/accuracy"]
    kept = load_predictions(recorded.tracking, run)
    np.testing.assert_allclose(np.exp(kept.log_probabilities), mean, atol=1e-6)
    assert read_ledger(recorded.tracking) == []

    assert recorded.combine(top=2).run_id == found.run_id
    tested = recorded.combine(top=2, test=True)
    assert (tested.run_id, tested.reading, tested.is_new) == (found.run_id, 1, True)
    test = load_test(load_checkpoint(found.members[0].checkpoint).config.data)
    images = torch.from_numpy(test.gather(slice(len(test)))).permute(0, 3, 1, 2)
    with torch.no_grad():
        each = [
            restore_classifier(load_checkpoint(one.checkpoint))(images).softmax(1).double().numpy()
            for one in found.members
        ]
    right = np.mean(each, axis=0).argmax(1) == test.labels
    assert tested.metrics["test/accuracy"] == right.mean() == tested.test_gain.accuracy
    assert tested.test_gain.member_accuracy == (each[0].argmax(1) == test.labels).mean()

    shown = recorded.combine(top=2, test=True)
    assert (shown.is_new, shown.test_gain) == (False, tested.test_gain)
    assert "--again reads the test split once more" in recorded.lines[-1]
    (reading,) = read_ledger(recorded.tracking)
    assert (reading.owner, reading.reading.run) == ("sweep mine", found.run_id)
    assert reading.reading.command == "harness ensemble mine --top 2 --test"


@pytest.mark.slow
def test_greedy_selection_of_runs_is_no_worse_than_the_best_and_a_greedy_soup_leaves_a_bad_one_out(
    recorded: Recorded,
) -> None:
    def spoil(classifier: ImageClassifier) -> None:
        """Let it answer the opposite."""
        for parameter in list(classifier.parameters())[-2:]:
            parameter.data.neg_()

    good, other, bad = (
        recorded.add(None, *LENET),
        recorded.add(None, *LENET, "seed=5"),
        recorded.add(None, *LENET, "seed=6", change=spoil),
    )
    found = recorded.combine(bad, good, other, greedy=True)
    assert [one.run_id for one in found.members][-1] == bad
    assert len({one.weight for one in found.members}) > 1
    assert sum(one.weight for one in found.members) == pytest.approx(1)
    assert found.metrics["val/accuracy"] >= found.members[0].score
    assert found.sweep is None
    assert recorded.combine(good, other, bad, greedy=True).run_id == found.run_id
    soup = recorded.combine(bad, good, other, greedy=True, soup=True)
    assert [one.weight > 0 for one in soup.members][-1] is False
    assert soup.metrics["val/accuracy"] >= soup.members[0].score
    assert "it is left out" in recorded.lines[-1]


@pytest.mark.slow
def test_a_soup_is_the_mean_of_the_weights_and_a_run_like_any_other(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    found = recorded.combine(top=2, soup=True)
    soup = load_checkpoint(found.checkpoint)
    states = [load_checkpoint(one.checkpoint).state_dict for one in found.members]
    for name, tensor in soup.state_dict.items():
        torch.testing.assert_close(tensor, sum(state[name] for state in states) / 2, atol=1e-6, rtol=1e-6)
    assert soup.score == found.metrics["val/accuracy"]
    assert "began from random weights" in " ".join(found.notes)
    again = evaluate_run(recorded.tracking, found.run_id, "val")
    assert again.metrics["val/accuracy"] == found.metrics["val/accuracy"]
    tested = recorded.combine(top=2, soup=True, test=True)
    direct = evaluate_checkpoint(Path(found.checkpoint), split="test")
    assert tested.metrics["test/accuracy"] == direct["test/accuracy"]
    (reading,) = read_ledger(recorded.tracking)
    assert (reading.owner, reading.reading.command) == (
        "sweep mine",
        "harness ensemble mine --top 2 --soup --test",
    )
    assert get_run(recorded.tracking, found.run_id).kind == "soup"
    assert main(["ensemble", "mine", "--top", "2", "--soup", "--test", "--again", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "harness.ensemble/1"
    assert (document["kind"], document["checkpoint"]) == ("soup", found.checkpoint)
    assert (document["test_gain"]["reading"], document["test_gain"]["num_images"]) == (2, 359)
    bundle = export_run(recorded.tracking, found.run_id, Path(recorded.tracking.dir) / "exports")
    assert bundle.config.run.metrics["test/accuracy"] == direct["test/accuracy"]


@pytest.mark.slow
def test_a_soups_batch_norms_are_measured_anew_unless_they_were_frozen(recorded: Recorded) -> None:
    def shift(classifier: ImageClassifier) -> None:
        for name, buffer in classifier.network.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(1.0)

    first = recorded.add(None, *RESNET)
    alike = recorded.add(None, *RESNET, "seed=1")
    shifted = recorded.add(None, *RESNET, "seed=2", change=shift)
    frozen = load_checkpoint(recorded.combine(first, alike, soup=True).checkpoint)
    same = load_checkpoint(recorded.checkpoint(first)).state_dict
    statistics = [name for name in same if "running_" in name]
    assert all(torch.equal(same[name], frozen.state_dict[name]) for name in statistics)

    found = recorded.combine(first, shifted, soup=True)
    soup = load_checkpoint(found.checkpoint)
    config = soup.config
    expected = restore_classifier(soup)
    data = ImageDataModule(load_splits(config.data), config.data, config.augment, config.seed)
    update_bn(data.images_again(0, torch.device("cpu")), expected)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(soup.state_dict[name], tensor, atol=1e-4, rtol=1e-4, msg=name)
    assert "computed anew on 1,294 training images" in " ".join(found.notes)

    # Of a network whose last norm alone has trained, the others keep what they had.
    last = next(name for name in reversed(statistics) if name.endswith("running_mean"))
    tuned = recorded.add(
        None, *RESNET, "seed=3", change=lambda classifier: classifier.get_buffer(last).add_(1.0)
    )
    partly = load_checkpoint(recorded.combine(first, tuned, soup=True).checkpoint).state_dict
    own = last.removesuffix("running_mean")
    for name in statistics:
        assert torch.equal(partly[name], same[name]) != name.startswith(own), name


@pytest.mark.slow
def test_what_cannot_be_combined_is_one_line(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    lenet, bigger = recorded.add(None, *LENET), recorded.add(None, *LENET, "model.image_size=40")
    resnet = recorded.add(None, *RESNET)
    other = recorded.add(None, *LENET, "data.split_seed=3")

    def line(*references: str, error: type[HarnessError] = TrackingError, **options: Any) -> str:
        with pytest.raises(error) as raised:
            recorded.combine(*references, **options)
        return str(raised.value)

    assert "is no sweep: name one, or two runs and more" in line(lenet)
    assert "one model is no ensemble" in line(lenet, lenet)
    assert "--top 1: an ensemble has two members" in line("mine", top=1)
    assert "were evaluated on different images" in line(lenet, other)
    text = line(lenet, resnet, soup=True, error=CheckpointError)
    assert "weights can only be averaged of one network: the network of" in text
    assert "test_resnet" in text
    assert "the preprocessing of" in line(lenet, bigger, soup=True, error=CheckpointError)
    assert main(["ensemble", "mine", "--again"]) == 2
    assert "--again reads the test split once more: say --test --again" in capsys.readouterr().err
    recorded.add(2, *LENET, "seed=2")
    recorded.checkpoint(recorded.combine(top=3).members[1].run_id).unlink()
    recorded.lines.clear()
    found = recorded.combine(top=3)
    assert len(found.members) == 2
    assert "its 2 best of 3 complete trials; 1 better ones kept no checkpoint" in recorded.lines[0]
