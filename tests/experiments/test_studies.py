"""Studies: their plans, what they compare, and their reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy import stats

import experiments.__main__ as by_name
from experiments.studies import report
from experiments.studies.__main__ import main
from experiments.studies.plan import Experiment, Study, load, study_names
from experiments.studies.report import Found
from experiments.trainings import NOT_YET, PFLOP, VAL, Trained
from harness.config.compose import compose_run
from harness.config.schema import TrackingConfig
from harness.config.validation import validate
from harness.errors import ConfigError
from harness.tracking.runs import find_runs

BASE = {"title": "t", "question": "q", "base": ["data=digits", "model=lenet"], "digits": []}
STUDY = validate(Study, {**BASE, "arms": [{"name": "plain"}, {"name": "fast", "set": ["optim.lr=0.2"]}]})
EXPERIMENT = Experiment("t", STUDY, seeds=(0, 1, 2))


@pytest.mark.parametrize("name", study_names())
def test_every_training_of_a_study_composes_and_reads_no_test_split(name: str) -> None:
    for on_digits in (False, True):
        cells = load(name, seeds=(0,), on_digits=on_digits).cells()
        for settings in {cell.trainings[0].settings for cell in cells}:
            config = compose_run([text.replace("{", "").replace("}", "") for text in settings])
            assert not config.evaluate_test
            assert not config.data.train_on_val
            assert config.trainer.select == "last"


def test_an_arm_may_name_only_arms_before_it() -> None:
    arms = [{"name": "student", "set": ["distill.teacher={teacher}"]}, {"name": "teacher"}]
    with pytest.raises(ConfigError, match="no arm before 'student' is called 'teacher'"):
        validate(Study, {**BASE, "arms": arms})
    alone = [{"name": "one"}, {"name": "mean", "combine": "one"}]
    with pytest.raises(ConfigError, match="'mean' combines 'one': name an arm before it, and two members"):
        validate(Study, {**BASE, "arms": alone})


def test_an_arms_score_for_a_seed_is_the_mean_of_its_members() -> None:
    study = validate(Study, {**BASE, "members": 2, "arms": [{"name": "one"}, {"name": "two"}]})
    cells = Experiment("t", study, seeds=(0, 3)).cells()
    assert [one.seed for one in cells[0].trainings] == [0, 1, 6, 7]
    members = [Trained(n, f"{n:032x}", {VAL: score, PFLOP: 1.0}, 2.0) for n, score in ((6, 0.7), (7, 0.8))]
    found = report.as_one(VAL, 3, members, cells[0].arm)
    assert (found.seed, found.metrics[VAL], found.metrics[PFLOP], found.minutes) == (3, 0.75, 1.0, 2.0)


def test_an_unknown_name_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert by_name.main(["augmentatoin"]) != 0
    assert "did you mean 'augmentation'" in capsys.readouterr().err
    assert main(["nothing"]) != 0
    assert capsys.readouterr().err.startswith("error: there is no study 'nothing'")


def _found(arm: str, *scores: float) -> Found:
    return Found("", arm, tuple(Trained(n, f"{n:032x}", {VAL: one}, 2.0) for n, one in enumerate(scores)))


def test_arms_are_compared_on_the_same_seeds() -> None:
    plain, fast = (0.70, 0.71, 0.73), (0.73, 0.745, 0.75)
    found = [_found("plain", *plain), _found("fast", *fast)]
    test = stats.ttest_rel(fast, plain)
    low, high = test.confidence_interval(0.95)
    text = report.render(EXPERIMENT, found, "a machine", "digits")
    assert f"+2.83 ({low * 100:+.2f} to {high * 100:+.2f}; p {test.pvalue:.3f})" in text
    assert "**Best: fast**, and better than each other arm" in text
    worse = [_found("plain", *plain), _found("fast", 0.69, 0.72, 0.72)]
    assert "not told apart from it by 3 seeds" in report.conclusion(VAL, worse)
    assert "plain" in report.conclusion(VAL, worse).split("**")[1]


def test_what_has_not_run_is_said() -> None:
    found = [_found("plain", 0.7), _found("fast")]
    text = report.render(EXPERIMENT, found, "", "")
    assert text.count(NOT_YET) == 3
    (axes,) = report.draw(EXPERIMENT, found).axes  # none against a cost: all have the same
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "fast"]


def test_a_report_says_what_of_its_plan_was_replaced() -> None:
    study = validate(Study, {**BASE, "arms": [{"name": "a"}, {"name": "b", "set": ["optim.lr=0.2"]}]})
    found = [_found("a", 0.7), _found("b", 0.8)]
    text = report.render(Experiment("t", study, ("model=lenet", "seed=1")), found, "", "")
    assert "**Run with** `model=lenet seed=1`.\n" in text
    text = report.render(Experiment("t", study, ("model=lenet", "optim.lr=0.3")), found, "", "")
    assert "**Run with** `model=lenet optim.lr=0.3`, **in place of the plan's** `optim.lr=0.2`: what" in text
    assert "All trainings: `data=digits model=lenet optim.lr=0.3`." in text


@pytest.mark.slow
@pytest.mark.parametrize("name", study_names())
def test_a_study_runs_on_digits_and_repeats_nothing(name: str, tmp_path: Path) -> None:
    command = [name, "--digits", "--seeds", "0", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    cells = load(name).cells()
    document = json.loads((tmp_path / "out" / report.RESULTS).read_text(encoding="utf-8"))
    assert [(one["level"], one["arm"]) for one in document["found"]] == [
        (cell.level, cell.arm.name) for cell in cells
    ]
    assert [len(one["trained"]) for one in document["found"]] == [1] * len(cells)
    text = (tmp_path / "out" / report.REPORT).read_text(encoding="utf-8")
    assert text.count(NOT_YET) == text.count(f"{NOT_YET} with two seeds or more")
    assert "**Run with** `data=digits" in text
    assert "**in place of the plan's** `data=cifar10`" in text
    assert (tmp_path / "out" / report.PICTURE).stat().st_size > 0
    done = {run.run_id for run in find_runs(TrackingConfig.at())}
    assert main(command) == 0
    assert {run.run_id for run in find_runs(TrackingConfig.at())} == done
