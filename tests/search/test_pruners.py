"""Which trials are given up early."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from harness.config.sampling import PrunerConfig
from harness.search.suggest.pruners import build_pruner, report_score, should_prune

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

EPOCHS = 3


def study_of(*directions: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="mine", directions=directions, sampler=optuna.samplers.RandomSampler()
    )
    for score in (0.9, 0.8, 0.85, 0.9, 0.95, 0.7, 0.8, 0.9):
        trial = study.ask()
        for epoch in range(1, EPOCHS + 1):
            report_score(study, trial._trial_id, epoch, score)
            should_prune(
                study, trial._trial_id, build_pruner(PrunerConfig(kind="successive_halving"), EPOCHS)
            )
        study.tell(trial, [score, 1.0][: len(directions)])
    return study


def verdicts(study: optuna.Study, config: PrunerConfig, *scores: float) -> list[bool]:
    """Return what is decided after each epoch of a trial with these scores, by a pruner built anew."""
    trial, decided = study.ask(), []
    for epoch, score in enumerate(scores, start=1):
        report_score(study, trial._trial_id, epoch, score)
        decided.append(should_prune(study, trial._trial_id, build_pruner(config, EPOCHS)))
    study.tell(trial, state=TrialState.PRUNED)
    return decided


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"]], ids=["one", "two"])
@pytest.mark.parametrize("kind", ["median", "hyperband", "successive_halving"])
def test_a_trial_far_behind_is_pruned_after_its_first_epoch(directions: list[str], kind: Any) -> None:
    study, config = study_of(*directions), PrunerConfig(kind=kind, startup_trials=2)

    assert verdicts(study, config, 0.99) == [False]
    assert verdicts(study, config, 0.01) == [True]
    assert [t.intermediate_values for t in study.trials[-2:]] == [{1: 0.99}, {1: 0.01}]


def test_the_second_objective_decides_nothing() -> None:
    assert verdicts(study_of("minimize", "maximize"), PrunerConfig(startup_trials=2), 0.01) == [False]


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"]], ids=["one", "two"])
def test_patience_leaves_a_trial_alone_while_it_gets_better(directions: list[str]) -> None:
    study, patient = study_of(*directions), PrunerConfig(startup_trials=2, patience_epochs=1)

    assert verdicts(study, patient, 0.1, 0.2, 0.3) == [False, False, False]
    assert verdicts(study, patient, 0.3, 0.2, 0.1) == [False, False, True]
    assert verdicts(study, patient, 0.99, 0.98, 0.97) == [False, False, False]  # worse, yet ahead of others


def test_patience_alone_ends_what_gets_no_better() -> None:
    config = PrunerConfig(kind="none", patience_epochs=1)

    assert verdicts(study_of("maximize"), config, 0.99, 0.98, 0.97) == [False, False, True]


def test_no_pruner_prunes_nothing() -> None:
    assert verdicts(study_of("maximize"), PrunerConfig(kind="none"), 0.0, 0.0, 0.0) == [False] * 3
