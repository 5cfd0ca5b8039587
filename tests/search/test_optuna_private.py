"""A contract for each private name and convention of Optuna that sweeps use: it fails if Optuna changes."""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, RDBStorage, _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb import storage as rdb
from optuna.study import StudyDirection
from optuna.trial import TrialState

import harness.search
from harness.errors import HarnessError
from harness.search.database import optuna_private as private
from harness.search.database.first_objective import FirstObjectiveStorage
from harness.search.database.optuna_tables import DirectStorage
from harness.search.database.retrying_storage import RetryingStorage
from harness.search.database.storage import open_storage

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def storage(tmp_path: Path) -> RetryingStorage:
    return open_storage(f"sqlite:///{tmp_path}/optuna.db")


@pytest.fixture
def study(storage: RetryingStorage) -> optuna.Study:
    return optuna.create_study(storage=storage, study_name="mine")


def test_another_version_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    private.check_version()
    monkeypatch.setattr(optuna, "__version__", "5.1.0")
    with pytest.raises(
        HarnessError, match=r"Optuna 5\.1\.0 is installed, but sweeps need Optuna 5\.0"
    ) as caught:
        open_storage(f"sqlite:///{tmp_path}/optuna.db")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_only_two_files_touch_optunas_private_names() -> None:
    """Attributes of Optuna's objects; our own private attributes are of `self`, or have other names."""
    names = "_storage|_study_id|_trial_id|_backend|_cached_frozen_trial|_add_trials_to_cache|_rdb"
    private_access = re.compile(rf"(?<!self)\.({names})\b")
    root = Path(harness.search.__file__).parent
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for line in path.read_text().splitlines()
        if private_access.search(line) and not line.strip().startswith('"')  # names of modules to preload
    }
    assert found == {"database/optuna_private.py", "database/optuna_tables.py"}


# ── studies and trials ────────────────────────────────────────────────────────────────────────────


def test_a_study_and_its_trials_have_ids(study: optuna.Study, storage: RetryingStorage) -> None:
    assert private.study_id(study) == storage.get_study_id_from_name("mine")
    trial = study.ask()
    assert storage.get_trial(private.trial_id(trial)).number == trial.number
    assert private.trial_id(study.get_trials()[0]) == private.trial_id(trial)


def test_a_study_calls_a_cache_over_the_database(study: optuna.Study, storage: RetryingStorage) -> None:
    assert isinstance(private.storage_beneath(study), _CachedStorage)
    assert private.database_beneath(study) is storage


def test_a_trial_in_the_cache_takes_parameters_without_reading_others(
    study: optuna.Study, storage: RetryingStorage
) -> None:
    trial_id = private.trial_id(study.ask())
    again = optuna.load_study(study_name="mine", storage=storage, sampler=optuna.samplers.RandomSampler())
    trial = optuna.trial.Trial(again, trial_id)
    assert private.add_to_cache(trial).number == 0
    trial.suggest_float("x", 0.0, 1.0)
    assert list(storage.get_trial(trial_id).params) == ["x"]


def test_an_enqueued_point_can_be_read_and_changed(study: optuna.Study) -> None:
    study.enqueue_trial({"x": 0.5})
    waiting = study.get_trials()[0]
    assert private.enqueued_point(waiting) == {"x": 0.5}
    private.change_enqueued_point(study, waiting, {"x": 0.25})
    assert study.ask().suggest_float("x", 0.0, 1.0) == 0.25
    assert private.enqueued_point(study.get_trials()[0]) == {"x": 0.25}
    study.ask()
    assert private.enqueued_point(study.get_trials()[1]) is None


def test_constraints_are_system_attributes_with_a_prefix(study: optuna.Study) -> None:
    trial = study.ask()
    trial.set_constraint("latency_ms <= 1", 0.5)
    study.tell(trial, 1.0)
    found = study.get_trials()[0]
    assert found.system_attrs == {f"{private.CONSTRAINT_PREFIX}latency_ms <= 1": 0.5}
    assert found.constraints == {"latency_ms <= 1": 0.5}


def test_cma_es_keeps_its_state_under_its_prefix(storage: RetryingStorage) -> None:
    sampler = optuna.samplers.CmaEsSampler(n_startup_trials=1, seed=0, warn_independent_sampling=False)
    study = optuna.create_study(storage=storage, sampler=sampler)
    study.optimize(lambda t: t.suggest_float("x", 0, 1) + t.suggest_float("y", 0, 1), n_trials=4)
    keys = {key for trial in study.get_trials() for key in trial.system_attrs}
    prefix = private.CMA_ES_PATTERN.removesuffix("%")
    assert keys
    assert all(key.startswith(prefix) for key in keys)


def test_the_place_in_a_quasi_random_sequence_is_ours() -> None:
    def draw(position: int) -> float:
        study = optuna.create_study(sampler=_SpaceOfX(position, seed=1))
        return study.ask().suggest_float("x", 0.0, 1.0)

    assert "_find_sample_id" in vars(optuna.samplers.QMCSampler)
    assert draw(3) == draw(3) != draw(4)


class _SpaceOfX(private.QmcSamplerAt):
    def infer_relative_search_space(self, study: object, trial: object) -> dict[str, Any]:
        return {"x": FloatDistribution(0.0, 1.0)}


# ── sessions and transactions ─────────────────────────────────────────────────────────────────────


def test_a_session_commits_at_its_end_and_not_before_an_error(
    study: optuna.Study, storage: RetryingStorage
) -> None:
    trial_id = private.trial_id(study.ask())

    def write(key: str) -> models.TrialUserAttributeModel:
        return models.TrialUserAttributeModel(trial_id=trial_id, key=key, value_json="1")

    with private.session_of(storage) as session:
        session.add(write("a"))
    with suppress(InterruptedError), private.session_of(storage) as session:
        session.add(write("b"))
        session.flush()
        raise InterruptedError
    with private.session_of(storage, ignore_conflicts=True) as session:
        session.add(write("a"))
    assert storage.get_trial(trial_id).user_attrs == {"a": 1}


def test_all_that_optuna_writes_in_one_transaction_is_undone_together(
    study: optuna.Study, storage: RetryingStorage
) -> None:
    """On a server the claims of trials rely on this; SQLite does it likewise."""
    trial_id = private.trial_id(study.ask())
    for is_kept in (False, True):
        with (
            storage.engine.connect() as connection,
            connection.begin() as transaction,
            private.optuna_in_one_transaction(storage, connection),
        ):
            assert private.is_in_transaction(storage)
            storage.set_trial_user_attr(trial_id, "a", 1)
            storage.record_heartbeat(trial_id)
            storage.set_trial_user_attrs(trial_id, {"b": 2})
            assert storage.get_trial(trial_id).user_attrs == {"a": 1, "b": 2}
            storage.create_taken_trial(private.study_id(study), {"owner": "me"})
            if not is_kept:
                transaction.rollback()
        assert not private.is_in_transaction(storage)
        assert storage.get_trial(trial_id).user_attrs == ({"a": 1, "b": 2} if is_kept else {})
        assert storage.get_n_trials(private.study_id(study)) == (2 if is_kept else 1)


def test_every_method_of_the_database_takes_its_session_from_the_one_registry() -> None:
    """One that opened a session of its own would write outside of the transaction."""
    source = inspect.getsource(RDBStorage)
    opened = re.findall(r"_create_scoped_session\(([^,)]*)", source)
    assert set(opened) == {"self.scoped_session"}
    assert source.count("sessionmaker(") == 2  # in __init__ and __setstate__


# ── tables, and what RDBStorage calls ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("TrialModel", "trial_id number study_id state datetime_start datetime_complete"),
        ("TrialParamModel", "param_id trial_id param_name param_value distribution_json"),
        ("TrialValueModel", "trial_value_id trial_id objective value value_type"),
        ("TrialUserAttributeModel", "trial_user_attribute_id trial_id key value_json"),
        ("TrialSystemAttributeModel", "trial_system_attribute_id trial_id key value_json"),
        (
            "TrialIntermediateValueModel",
            "trial_intermediate_value_id trial_id step intermediate_value intermediate_value_type",
        ),
        ("TrialHeartbeatModel", "trial_heartbeat_id trial_id heartbeat"),
    ],
)
def test_the_tables_have_the_columns_that_we_read_and_write(table: str, columns: str) -> None:
    found = sa.inspect(getattr(private.tables(), table)).columns
    assert {column.key for column in found} == {*columns.split()}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_get_trials", "self study_id states included_trial_ids trial_id_greater_than"),
        ("_get_best_trial_id", "self study_id direction"),
        ("_get_stale_trial_ids", "self study_id"),
        (
            "_set_trial_param",
            "self trial_id param_name param_value_internal distribution previous_distribution",
        ),
        ("_get_prepared_new_trial", "self study_id template_trial session"),
        ("_set_trial_attr_without_commit", "self session model_cls trial_id key value"),
        ("_build_frozen_trial_from_trial_model", "self trial"),
    ],
)
def test_private_methods_of_the_database_have_their_parameters(name: str, parameters: str) -> None:
    assert list(inspect.signature(getattr(RDBStorage, name)).parameters) == parameters.split()
    assert list(inspect.signature(getattr(DirectStorage, name)).parameters) == parameters.split()


def test_the_session_context_and_the_cache_have_their_parameters() -> None:
    session = inspect.signature(rdb._create_scoped_session).parameters
    assert list(session) == ["scoped_session", "ignore_integrity_error"]
    assert list(inspect.signature(_CachedStorage._add_trials_to_cache).parameters) == [
        "self",
        "study_id",
        "trials",
    ]


def test_the_choice_of_a_trial_is_stored_as_its_index(study: optuna.Study, storage: RetryingStorage) -> None:
    """`--extend` writes the index anew where the larger space has other values."""
    trial = study.ask()
    chosen = trial.suggest_categorical("size", [64, 128])
    with private.session_of(storage) as session:
        stored = session.scalars(sa.select(private.tables().TrialParamModel.param_value)).one()
    assert [64, 128][int(stored)] == chosen


# ── storages of our own ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ours", [RetryingStorage, FirstObjectiveStorage])
def test_our_storages_implement_every_abstract_method(ours: type[BaseStorage]) -> None:
    expected = set(BaseStorage.__abstractmethods__)
    if ours is RetryingStorage:
        expected -= {"create_new_study", "create_new_trial"}  # not repeated
    assert expected <= set(vars(ours))
    for name in expected:
        theirs = inspect.signature(getattr(BaseStorage, name)).parameters
        assert list(inspect.signature(getattr(ours, name)).parameters) == list(theirs), name


def test_a_view_of_the_first_objective_writes_to_the_storage_beneath(storage: RetryingStorage) -> None:
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
    study = optuna.create_study(storage=storage, study_name="two", directions=directions)
    trial_id = private.trial_id(study.ask())
    view = FirstObjectiveStorage(private.storage_beneath(study))
    view.set_trial_system_attr(trial_id, "rung", 1)
    assert view.get_study_directions(private.study_id(study)) == directions[:1]
    assert storage.get_trial(trial_id).system_attrs == {"rung": 1}
    assert storage.get_trial(trial_id).state == TrialState.RUNNING
