"""The published trainings: their plans, their records, their reports, and the scripts that they repeat."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from experiments import trainings
from experiments.published import report, script
from experiments.published.__main__ import main
from experiments.published.plan import Experiment, Plan, experiment_names, load
from experiments.published.results import RESULTS, Results, gains
from experiments.published.timing import Seconds
from experiments.trainings import NOT_YET, Arm, Trained, Training, describe_difference, last_of_each
from harness.config.compose import compose_run
from harness.config.schema import ScratchModel, TrackingConfig
from harness.errors import ConfigError
from harness.models import build_model
from harness.tracking import names
from harness.tracking.runs import find_runs
from harness.tracking.store import open_store
from harness.training.result import RunResult

NAMES = experiment_names()
PLAN = Plan(
    title="t",
    source="s",
    published=0.7,
    recipe="keras_cnn_5",
    ladder=(Arm(name="one", set=("optim.lr=0.002",)), Arm(name="two", set=("optim.lr=0.003",))),
    goal=0.8,
)
EXPERIMENT = Experiment("keras_cnn_5", PLAN, seeds=(0, 1, 2))


# ── plans ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_five_systems_are_there() -> None:
    assert set(NAMES) == {"keras_cnn_5", "keras_cnn_10", "lenet_sgd", "frozen_resnet50", "wide_cnn_sgd"}


@pytest.mark.parametrize("name", NAMES)
def test_every_training_of_a_plan_composes_and_tests_what_it_should(name: str) -> None:
    experiment = load(name, seeds=(0,))
    plan = experiment.plan
    tested = [*experiment.published(), *(one for arm in plan.strategies for one in experiment.strategy(arm))]
    for training in tested:
        config = compose_run(training.overrides)
        assert config.evaluate_test
        assert config.trainer.select == "last"
    for number in range(len(plan.ladder) + 1 if plan.ladder else 0):
        config = compose_run(experiment.step(number)[0].overrides)
        assert not config.evaluate_test
        assert not config.data.train_on_val
    if plan.ladder:
        config = compose_run(experiment.final()[0].overrides)
        assert config.evaluate_test
        assert config.data.train_on_val


def test_a_later_setting_of_a_key_replaces_an_earlier_one() -> None:
    assert last_of_each(("a=1", "b=2", "a=3")) == ("a=3", "b=2")
    assert compose_run(EXPERIMENT.step(2)[0].overrides).optim.lr == 0.003


def test_an_unknown_experiment_is_refused_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'lenet_sgd'"):
        load("lenet")
    assert main(["lenet"]) != 0
    assert capsys.readouterr().err.startswith("error: ")


# ── the scripts ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["keras_cnn_5", "lenet_sgd", "wide_cnn_sgd"])
def test_a_script_trains_the_network_of_its_recipe(name: str) -> None:
    """With the same weights both give the same logits, so the pixels are the same, too."""
    config = compose_run([f"recipe={name}"])
    assert isinstance(config.model, ScratchModel)
    ours = build_model(config.model, 10).eval()
    run = script.Run(script.SCRIPTS[name], 10)
    with torch.no_grad():
        for theirs, own in zip(run.network.parameters(), ours.network.parameters(), strict=True):
            theirs.copy_(own)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    ((pixels, _),) = run._loader(images, np.arange(4), shuffle=False)
    expected = ours(torch.from_numpy(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(run.network(pixels), expected)
    assert run.script.batch_size == config.data.batch_size


def test_a_script_learns_and_says_how_well() -> None:
    images = np.zeros((40, 32, 32, 3), np.uint8)
    labels = np.arange(40) % 2
    images[labels == 1] = 255
    run = script.Run(script.SCRIPTS["keras_cnn_5"], 2)
    assert len(run.train(images, labels, epochs=8)) == 8
    assert run.accuracy(images, labels) == 1.0


# ── records ───────────────────────────────────────────────────────────────────────────────────────


class FakeHarness:
    """Stands for `harness`: records a run as the real one does, without training."""

    def __init__(self, *statuses: str) -> None:
        self.statuses = list(statuses)  # of the calls to come
        self.calls: list[str] = []

    def train(self, *overrides: str) -> RunResult:
        self.calls.append("train")
        config = compose_run(overrides)
        tracker = open_store(config.tracking).start_run(config.tracking.run_name, "e", {})
        tracker.log_text(yaml.safe_dump(config.to_dict()), names.CONFIG_FILE)
        return self._end(tracker)

    def resume(self, run: str) -> RunResult:
        self.calls.append("resume")
        return self._end(open_store(TrackingConfig.at()).start_run(None, "", {}, run_id=run))

    def _end(self, tracker: Any) -> RunResult:
        status = self.statuses.pop(0)
        tracker.finish("FINISHED" if status == "finished" else "KILLED")
        return RunResult(tracker.run_id, status, 0.5, 0, {}, None, 1.0)  # type: ignore[arg-type]


@pytest.fixture
def training() -> Training:
    return Training("e", "published", 0, ("recipe=keras_cnn_5",))


def _with(monkeypatch: pytest.MonkeyPatch, *statuses: str) -> FakeHarness:
    fake = FakeHarness(*statuses)
    monkeypatch.setattr(trainings, "harness", fake)
    return fake


def test_a_finished_training_is_not_repeated_and_a_killed_one_goes_on(
    monkeypatch: pytest.MonkeyPatch, training: Training
) -> None:
    fake = _with(monkeypatch, "interrupted", "finished")
    with pytest.raises(trainings.StoppedError, match="repeat the command"):
        trainings.ensure(training)
    first = trainings.ensure(training)
    assert trainings.ensure(training).run_id == first.run_id
    assert fake.calls == ["train", "resume"]


def test_a_run_of_another_configuration_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, training: Training
) -> None:
    fake = _with(monkeypatch, "finished", "finished", "finished")
    trainings.ensure(training)
    trainings.ensure(dataclasses.replace(training, settings=("recipe=keras_cnn_5", "optim.lr=0.5")))
    trainings.ensure(dataclasses.replace(training, settings=("recipe=keras_cnn_5", "trainer.threads=1")))
    assert fake.calls == ["train", "train"]


def test_a_run_that_was_killed_before_it_recorded_its_configuration_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, training: Training
) -> None:
    open_store(TrackingConfig.at()).start_run(training.name, "e", {}).finish("KILLED")
    fake = _with(monkeypatch, "finished")
    trainings.ensure(training)
    assert fake.calls == ["train"]


# ── results and reports ───────────────────────────────────────────────────────────────────────────


def _trained(metric: str, *scores: float) -> tuple[Trained, ...]:
    return tuple(Trained(seed, f"{seed:032x}", {metric: score}, 1.5) for seed, score in enumerate(scores))


RESULT = Results(
    experiment="keras_cnn_5",
    data="cifar10",
    machine="a machine",
    published=_trained("test/accuracy", 0.70, 0.71, 0.72),
    ladder=(
        _trained("val/accuracy", 0.70, 0.71, 0.73),
        _trained("val/accuracy", 0.73, 0.745, 0.75),
        _trained("val/accuracy", 0.72, 0.74, 0.743),
    ),
    seconds=(Seconds(1.0, 2.0, 0.5),),
    script=((0.68, 0.9),),
    planted=(100, 0),
)


def test_results_are_the_same_after_a_file(tmp_path: Path) -> None:
    file = tmp_path / RESULTS
    file.write_text(RESULT.to_json(), encoding="utf-8")
    assert Results.read(file) == RESULT


def test_a_steps_gain_is_paired_over_seeds_and_corrected_over_the_steps() -> None:
    up, down = gains(RESULT)
    assert up is not None
    assert down is not None
    before, after, last = ([one.metrics["val/accuracy"] for one in step] for step in RESULT.ladder)
    first, second = stats.ttest_rel(after, before), stats.ttest_rel(last, after)
    assert (up.first, down.first) == ("new", "old")
    assert up.p_value == pytest.approx(first.pvalue)
    smaller, larger = sorted([first.pvalue, second.pvalue])
    assert sorted([up.corrected, down.corrected]) == pytest.approx([2 * smaller, max(2 * smaller, larger)])
    low, high = first.confidence_interval(0.95)
    text = describe_difference(up, has_run=True)
    expected = f"{(np.mean(after) - np.mean(before)) * 100:+.2f} ({low * 100:+.2f} to {high * 100:+.2f}"
    assert text.startswith(expected)
    assert describe_difference(down, has_run=True).startswith("-0.73 (")


def test_a_report_says_what_is_within_and_what_has_not_run() -> None:
    assert "(70.0% as published): +1.0 points, within 1.5 points" in report.verdict(PLAN, RESULT)
    far = dataclasses.replace(RESULT, published=_trained("test/accuracy", 0.73, 0.74, 0.75))
    assert "+4.0 points, **not** within 1.5 points" in report.verdict(PLAN, far)
    other = dataclasses.replace(RESULT, data="digits")
    assert "no figure was published for these images" in report.verdict(PLAN, other)
    text = report.render(EXPERIMENT, RESULT)
    assert "Mean ratio 0.50" in text
    assert "tested once: not yet run" in text
    assert text.count(NOT_YET) == 1
    assert NOT_YET in report.render(EXPERIMENT, Results("keras_cnn_5"))


def test_a_report_says_what_of_recipe_and_plan_was_replaced() -> None:
    added = ("data=digits", "trainer.max_epochs=1", "optim.lr=0.003")
    experiment = dataclasses.replace(EXPERIMENT, added=added)
    text = report.render(experiment, dataclasses.replace(RESULT, added=added))
    replaced = "`data=cifar10`, `optim.lr=0.001`, `trainer.max_epochs=5`, `optim.lr=0.002`: what differs"
    assert f"**Run with** `{' '.join(added)}`, **in place of the plan's** {replaced}" in text


def test_the_table_has_a_row_for_each_system(capsys: pytest.CaptureFixture[str]) -> None:
    lines = report.table(dict.fromkeys(NAMES)).splitlines()
    assert len(lines) == 2 + len(NAMES)
    assert all(NOT_YET in line for line in lines[2:])
    row = report.table({"keras_cnn_5": RESULT}).splitlines()[2]
    assert "| 67.9% | 71.00% (68.45% to 73.42%, n = 3) | 0.50 | not yet run |" in row
    assert main(["--table"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(NAMES)


# ── the whole of it, on digits ────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_published_training_runs_is_recorded_and_reported(tmp_path: Path) -> None:
    command = [
        "lenet_sgd",
        "--digits",
        "--seeds",
        "0",
        "--parts",
        "published",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    found = Results.read(tmp_path / "out" / RESULTS)
    assert (found.data, len(found.published)) == ("digits", 1)
    (run,) = find_runs(TrackingConfig.at(), run_ids=[found.published[0].run_id])
    assert run.metrics["test/accuracy"] == found.published[0].metrics["test/accuracy"]
    assert main(command) == 0
    assert len(find_runs(TrackingConfig.at())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_runs_on_digits_and_repeats_nothing(name: str, tmp_path: Path) -> None:
    command = [name, "--digits", "--seeds", "0", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    text = (tmp_path / "out" / report.REPORT).read_text(encoding="utf-8")
    assert NOT_YET not in text
    assert "**Run with** `data=digits data.max_train_samples=200 trainer.max_epochs=1" in text
    assert "**in place of the plan's** `data=cifar10`, `data.max_train_samples=" in text
    done = {run.run_id for run in find_runs(TrackingConfig.at())}
    assert main(command) == 0
    assert {run.run_id for run in find_runs(TrackingConfig.at())} == done

    found, plan = Results.read(tmp_path / "out" / RESULTS), load(name).plan
    assert len(found.published) == 1
    assert len(found.seconds) == 3
    assert [len(trained) for trained in found.strategies.values()] == [1] * len(plan.strategies)
    assert [len(trained) for trained in found.ladder] == [1] * (len(plan.ladder) + 1 if plan.ladder else 0)
    assert len(found.final) == bool(plan.ladder)
    if name == "keras_cnn_10":
        assert found.planted == (30, 0)  # three images of each class; the harness trains on none of them
        assert len(found.mixed) == len(found.honest) == len(found.script) == 1
