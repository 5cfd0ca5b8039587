"""A configuration that is drawn again is a replicate with a seed of its own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from harness.config.sweep import SweepConfig
from harness.search.database.storage import open_storage, storage_url
from harness.search.report.leaderboard import leaderboard_csv
from harness.search.study import keys
from harness.search.study.trials import create_study, find_study
from harness.search.trial.replicates import choose_seed, describe_replicates, replicated, warn_of_replicates
from tests.search.conftest import SmallSweep
from tests.search.test_disk import row

CHOICE = {"type": "choice", "values": [8, 16, 32]}
SWEEP = SweepConfig.model_validate({"space": {"data.batch_size": CHOICE}})


@pytest.fixture
def folder(tmp_path: Path, empty_databases: list[Path]) -> Path:
    shutil.copy(empty_databases[0], tmp_path)
    create_study(open_storage(storage_url(str(tmp_path))), "mine", SWEEP)
    return tmp_path


def open_again(folder: Path) -> optuna.Study:
    study = find_study(open_storage(storage_url(str(folder))), "mine")
    assert study is not None
    return study


def begin(study: optuna.Study, overrides: Sequence[str], seed: int = 0) -> int:
    return choose_seed(study, study.ask()._trial_id, overrides, seed)


def test_what_is_drawn_again_has_the_next_seed(folder: Path) -> None:
    study = open_again(folder)

    assert begin(study, ["data.batch_size=8"]) == 0
    assert begin(study, ["data.batch_size=16"]) == 0
    assert begin(study, ["data.batch_size=8"]) == 1
    assert begin(study, ["data.batch_size=8"]) == 2


def test_a_seed_that_is_searched_is_no_configuration_of_its_own(folder: Path) -> None:
    study = open_again(folder)

    assert begin(study, ["data.batch_size=8", "seed=3"], seed=3) == 3
    assert begin(study, ["data.batch_size=8", "seed=2"], seed=2) == 2
    assert begin(study, ["data.batch_size=8", "seed=2"], seed=2) == 4  # as 3 is taken


def test_seeds_go_on_below_the_largest(folder: Path) -> None:
    study = open_again(folder)

    assert [begin(study, ["a=1"], seed=2**32 - 1) for _ in range(2)] == [2**32 - 1, 0]


def test_a_trial_that_goes_on_keeps_its_seed(folder: Path) -> None:
    study = open_again(folder)
    first, second = (study.ask()._trial_id for _ in range(2))
    for trial_id in (first, second):
        choose_seed(study, trial_id, ["a=1"], 0)

    assert choose_seed(open_again(folder), first, ["a=1"], 0) == 0
    assert choose_seed(open_again(folder), second, ["a=1"], 0) == 1


def test_a_trial_of_an_earlier_program_keeps_the_runs_seed(folder: Path) -> None:
    study = open_again(folder)
    for _ in range(2):
        study.ask().set_user_attr(keys.OVERRIDES, ["a=1"])
    second = study.get_trials()[1]

    assert choose_seed(study, second._trial_id, ["a=1"], 5) == 5
    assert begin(study, ["a=1"], seed=5) == 6


def test_processes_that_draw_it_at_the_same_time_get_different_seeds(folder: Path) -> None:
    seeds, start = [], threading.Barrier(4)

    def work() -> None:
        study = open_again(folder)
        trial_id = study.ask()._trial_id
        start.wait()
        seeds.append(choose_seed(study, trial_id, ["data.batch_size=8"], 0))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(seeds) == [0, 1, 2, 3]


def test_a_sweep_of_one_configuration_trains_it_with_every_seed_once(small_sweep: SmallSweep) -> None:
    space = "sweep.space={optim.lr: {type: choice, values: [0.01]}}"
    result = small_sweep.run(space, "sweep.enqueue=[]")

    assert [row.seed for row in result.rows] == [0, 1, 2]
    shown = small_sweep.output.getvalue()
    assert "the space has 1 configuration, the sweep 3 trials" in shown
    assert "trial 1 of 0 (seed 1), trial 2 of 0 (seed 2)" in shown
    assert leaderboard_csv(result.rows, SWEEP, result.verdict).splitlines()[3].endswith(",2,0,False")


def test_replicates_are_named() -> None:
    values = [{"a": 1}, {"a": True}, {"a": 1, "b": "x"}, {"b": "x", "a": 1}, {}, {}, {"a": 1}]
    rows = [replace(row(number), params=params, seed=number % 3) for number, params in enumerate(values)]
    rows[6] = replace(rows[6], seed=None)

    assert replicated(rows) == {3: 2, 6: 0}
    assert describe_replicates(rows) == (
        "replicates, one configuration trained again: trial 3 of 2 (seed 0), trial 6 of 0 (same seed)"
    )
    assert describe_replicates(rows[:3]) is None


def test_a_long_list_of_replicates_is_cut_short() -> None:
    rows = [replace(row(number), params={"a": 1}, seed=number) for number in range(30)]

    assert "trial 8 of 0 (seed 8) and 21 more, see leaderboard.csv" in str(describe_replicates(rows))


@pytest.mark.parametrize(
    ("space", "warns"),
    [
        ({"data.batch_size": CHOICE}, True),
        ({"data.batch_size": CHOICE, "seed": {"type": "int", "low": 0, "high": 9}}, False),
        ({"data.batch_size": CHOICE, "optim.lr": {"type": "float", "low": 0.1, "high": 0.2}}, False),
    ],
)
def test_a_small_space_is_named_before_it_begins(space: dict[str, object], warns: bool) -> None:
    sweep = SweepConfig.model_validate({"space": space, "num_trials": 4})

    assert (warn_of_replicates(sweep) is not None) == warns
    assert warn_of_replicates(sweep.model_copy(update={"num_trials": 3})) is None
