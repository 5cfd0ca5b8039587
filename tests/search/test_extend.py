"""A sweep that is made larger on purpose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest

from harness.cli.main import parse
from harness.config.sweep import SweepConfig
from harness.errors import SweepError
from harness.search.database.storage import open_storage, storage_url
from harness.search.study import identity
from harness.search.study import trials as studies
from harness.search.study.extend import widen_trials
from harness.search.suggest.constraints import tell_costs
from harness.search.suggest.space import suggest
from tests.search.conftest import SmallSweep
from tests.search.test_samplers import sweep_of

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

NARROW: dict[str, Any] = {
    "x": {"type": "float", "low": 1.0, "high": 2.0, "log": True},
    "n": {"type": "int", "low": 1, "high": 3},
    "size": {"type": "choice", "values": [64, 128]},
}
WIDE: dict[str, Any] = {
    "x": {**NARROW["x"], "high": 20.0},
    "n": {**NARROW["n"], "low": 0},
    "size": {"type": "choice", "values": [32, 64, 128]},
}


@pytest.fixture
def storage(tmp_path: Path, empty_databases: list[Path]) -> optuna.storages.BaseStorage:
    shutil.copy(empty_databases[0], tmp_path)
    return open_storage(storage_url(str(tmp_path)))


def run_trials(study: optuna.Study, sweep: SweepConfig, count: int) -> list[dict[str, Any]]:
    chosen = []
    for _ in range(count):
        asked = study.ask()
        own = studies.load_study_for_trial(study._storage, study.study_name, sweep, asked.number)
        trial = optuna.trial.Trial(own, asked._trial_id)
        chosen.append(suggest(trial, sweep.space))
        tell_costs(trial, sweep, {"latency_ms": float(chosen[-1]["x"])})
        own.tell(trial, float(chosen[-1]["x"]))
    return chosen


SLOW_GP = pytest.param("gp", marks=pytest.mark.slow)


@pytest.mark.parametrize("kind", ["tpe", SLOW_GP, "cmaes", "qmc", "nsgaii", "random"])
def test_the_trials_stay_and_every_sampler_enters_what_is_new(storage: Any, kind: str) -> None:
    narrow, wide = (sweep_of(kind, space, sampler={"population_size": 5}) for space in (NARROW, WIDE))
    study = studies.create_study(storage, "mine", narrow)
    before = run_trials(study, narrow, 9)
    widen_trials(storage, study._study_id, wide)
    reopened = studies.find_study(storage, "mine")
    assert reopened is not None
    kept = [trial.params for trial in reopened.trials]
    after = run_trials(reopened, wide, 5 if kind == "gp" else 20)

    assert kept == before  # though 64 is now the second of the values
    assert {dist.high for trial in reopened.trials for dist in [trial.distributions["x"]]} == {20.0}  # type: ignore[attr-defined]
    assert any(chosen["x"] > 2 for chosen in after)
    assert kind == "gp" or any(chosen["n"] == 0 for chosen in after)
    assert kind == "gp" or any(chosen["size"] == 32 for chosen in after)


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_earlier_trials_are_judged_by_a_new_constraint(storage: Any, kind: str) -> None:
    sweep = sweep_of(kind, NARROW)
    bounded = sweep.model_copy(update={"constraints": ["latency_ms <= 1.5"]})
    study = studies.create_study(storage, "mine", sweep)
    run_trials(study, sweep, 6)
    widen_trials(storage, study._study_id, bounded)
    widen_trials(storage, study._study_id, bounded)  # as after a crash in between
    reopened = studies.find_study(storage, "mine")
    assert reopened is not None
    run_trials(reopened, bounded, 2)  # the Gaussian process needs as many constraints of each trial

    for row in studies.read_rows(reopened):
        assert (row.state == "infeasible") == (row.params["x"] > 1.5)


@pytest.mark.parametrize(
    ("path", "old", "new", "is_wider"),
    [
        ("sweep.space.optim.lr.low", 0.1, 0.01, True),
        ("sweep.space.optim.lr.low", 0.1, 0.2, False),
        ("sweep.space.optim.lr.high", 1, 2, True),
        ("sweep.space.optim.lr.high", 2, 1, False),
        ("sweep.space.data.batch_size.values", [64, 128], [32, 64, 128], True),
        ("sweep.space.data.batch_size.values", [64, 128], [64, 256], False),
        ("sweep.space.data.batch_size.values", [64, 128], [128, 64], False),
        ("sweep.space.trainer.compile.values", [True], [1, 2], False),
        ("sweep.space.a.when.b.low", 2, 1, False),
        ("sweep.space.optim.lr.low", identity.ABSENT, 1, False),
        ("sweep.constraints", [], ["latency_ms <= 1"], True),
        ("sweep.constraints", ["latency_ms <= 1"], [], False),
        ("sweep.sampler.seed", 0, 1, False),
        ("trainer.max_epochs", 1, 2, False),
    ],
)
def test_what_counts_as_wider(path: str, old: Any, new: Any, is_wider: bool) -> None:
    assert identity.is_wider(path, old, new) == is_wider


def change(sweep: SmallSweep, old: str, new: str) -> None:
    file = sweep.configs / "sweep" / "small.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.slow
def test_a_sweep_is_extended_only_on_purpose(small_sweep: SmallSweep) -> None:
    small_sweep.run("sweep.num_trials=2")
    change(small_sweep, "high: 1.0e-2", "high: 2.0e-2")
    with pytest.raises(SweepError, match=r"lr.high: 0.01 → 0.02; widen it on purpose with --extend"):
        small_sweep.run("sweep.num_trials=3")
    small_sweep.run("sweep.num_trials=3", extend=True)
    result = small_sweep.run("sweep.num_trials=3")  # from now on, this is its question
    again = small_sweep.run("sweep.num_trials=3", extend=True)
    written = json.loads((small_sweep.runs / "sweeps" / "small" / "sweep.json").read_text())

    assert len(result.rows) == len(again.rows) == 3
    text = small_sweep.output.getvalue()
    assert "is extended after 2 trials: sweep.space.optim.lr.high: 0.01 → 0.02" in text
    assert "nothing to extend" in text
    assert [note["after_trials"] for note in written["extensions"]] == [2]


def test_another_question_is_no_extension(small_sweep: SmallSweep) -> None:
    with pytest.raises(SweepError, match="there is no sweep 'small' to extend"):
        small_sweep.run(extend=True)
    small_sweep.run("sweep.num_trials=1")
    change(small_sweep, "high: 1.0e-2", "high: 5.0e-3")
    for extend in (True, False):
        with pytest.raises(SweepError, match=r"lr.high: 0.01 → 0.005") as caught:
            small_sweep.run(extend=extend)
        assert ("can only be widened" in str(caught.value)) == extend
        assert "--extend" not in str(caught.value)


def test_extend_may_stand_anywhere_among_the_overrides() -> None:
    options = parse(["sweep", "sweep=small", "--extend", "sweep.name=mine"])

    assert options.extend
    assert options.overrides == ["sweep=small", "sweep.name=mine"]
    with pytest.raises(SystemExit):
        parse(["sweep", "--extent"])
    with pytest.raises(SystemExit):
        parse(["ui", "more"])
