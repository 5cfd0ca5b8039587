"""`harness next`: what could be done with a sweep follows from its database alone."""

from __future__ import annotations

import shlex
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from harness.cli.main import main, parse
from harness.config.compose import compose_sweep
from harness.search.database.storage import open_storage, storage_url
from harness.search.report.next_steps import NextSteps, next_steps
from harness.search.report.parent_run import plan_facts
from harness.search.study import keys
from harness.search.study.trials import create_study

OVERRIDES = ("data=digits", "model=lenet", "finetune=full", "sweep.name=mine", "sweep.num_trials=2")


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """A sweep of two trials, of which none has begun."""
    plan = compose_sweep([*OVERRIDES, "sweep.replicate.seeds=0"])
    found = create_study(open_storage(storage_url(str(tmp_path / "mlruns"), None)), "mine", plan.sweep)
    found.set_user_attr(keys.PLAN, plan_facts(plan))
    return found


def end(study: optuna.Study, score: float | None, **attributes: object) -> None:
    state = TrialState.FAIL if score is None else TrialState.COMPLETE
    values = None if score is None else [score]
    study.add_trial(optuna.trial.create_trial(state=state, values=values, user_attrs=attributes))


def kinds(steps: NextSteps) -> list[str]:
    for step in steps.steps:
        words = shlex.split(step.command)
        assert words[0] == "harness"
        parse(words[1:])  # the command can be read
    return [step.kind for step in steps.steps]


def test_an_unfinished_sweep_goes_on(study: optuna.Study) -> None:
    end(study, 0.5)
    steps = next_steps(study, "there", "postgresql://x/y")
    assert (steps.state, kinds(steps)) == ("stopped", ["continue"])
    assert steps.steps[0].reason == "1 of 2 trials have ended"
    command = shlex.split(steps.steps[0].command)
    assert set(OVERRIDES) <= set(command)
    assert command[-2:] == ["--storage", "postgresql://x/y"]


def test_a_complete_sweep_is_replicated_settled_finalized_and_exported(study: optuna.Study) -> None:
    end(study, 0.5)
    end(study, 0.75)
    finding = {"kind": "edge", "sentence": "at the edge", "command": "harness sweep --extend sweep.name=mine"}
    study.set_user_attr(keys.AUDIT, [finding, {**finding, "command": None}])
    steps = next_steps(study)
    assert steps.state == "complete"
    assert kinds(steps) == ["replicate", "settle", "finalize", "export", "compare", "extend"]
    by_kind = {step.kind: step for step in steps.steps}
    assert by_kind["settle"].reason == "at the edge"
    assert "was not read" in by_kind["finalize"].reason
    assert "sweep.num_trials=4" in by_kind["extend"].command
    assert "trial 1, the best, was trained with one seed" in by_kind["replicate"].reason

    study.set_user_attr(keys.TEST, {"trial": 1, "metrics": {}, "reading": 1})
    finalize = next(step for step in next_steps(study).steps if step.kind == "finalize")
    assert "without another reading" in finalize.reason


def test_a_sweep_without_an_answer_says_so(study: optuna.Study) -> None:
    end(study, None)
    end(study, None)
    steps = next_steps(study)
    assert kinds(steps) == ["extend"]
    assert steps.steps[0].reason.startswith("no trial is complete, so there is no answer yet")


def test_the_command_prints_each_step_with_its_reason(
    study: optuna.Study, capsys: pytest.CaptureFixture[str]
) -> None:
    end(study, 0.5)
    assert main(["next"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "sweep mine: stopped\ncontinue: 1 of 2 trials have ended\n    harness sweep data=digits"
    )
    assert main(["next", "nothing"]) == 2
    assert "no sweep 'nothing'" in capsys.readouterr().err
