"""Finds a plan's sweep: its name, folder, database and study, and the lock of its coordinator.

`sweep.py` and `worker.py` begin here. `identity.py` decides whether an existing sweep is the plan's.
"""

from __future__ import annotations

import json
import re
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna

from harness.config.compose import SweepPlan, compose_sweep
from harness.config.overrides import path_of
from harness.credentials import shown
from harness.data import load_splits
from harness.errors import ConfigError, SweepError
from harness.search.coordinator.completion import has_ended
from harness.search.database import storage
from harness.search.database.retrying_storage import RetryingStorage
from harness.search.report import parent_run as record
from harness.search.study import identity, keys
from harness.search.study import trials as study
from harness.search.study.identity import check_code
from harness.search.study.trials import TrialRow, best_row, read_rows
from harness.search.suggest.starting_points import enqueue_points

IDENTITY_FILE = "sweep-identity.txt"  # in a sweep's folder; holds the id of the sweep that owns it
NOT_BEGUN = "sweep {name!r} has not begun: start it with `harness sweep` first"
SAFE_NAME = re.compile(r"[\w][\w.+-]{0,120}")


@dataclass(frozen=True)
class SweepContext:
    """A sweep's plan, name, folder and database on this machine, whether the sweep has begun or not."""

    plan: SweepPlan
    name: str
    identity: dict[str, Any]  # see identity.py
    experiment: str
    directory: Path
    storage: str  # the database's URL
    command: str  # the shell command that continues the sweep

    @cached_property
    def database(self) -> RetryingStorage:
        """The database, opened at first use. If it does not answer, opening fails at once, later use waits.

        Raises:
            SweepError: it cannot be opened.
        """
        return storage.open_storage(self.storage, self.plan.sweep.lease_seconds)

    @property
    def runs(self) -> Path:
        """The folder of runs."""
        return self.directory.parents[1]

    def trial_directory(self, number: int) -> Path:
        return self.directory / f"trial-{number:04d}"

    def with_plan(self, plan: SweepPlan) -> SweepContext:
        """Return this context with another plan, in practice the same one with its arms composed."""
        home = replace(self, plan=plan)
        if "database" in vars(self):
            vars(home)["database"] = self.database  # which is opened once
        return home

    def of(self, found: optuna.Study) -> SweepContext:
        """Return this context with the folder that belongs to the given study.

        A folder of this name may belong to an earlier sweep whose database is gone or elsewhere. That sweep
        keeps its folder, because its MLflow runs point to checkpoints there; ours gets a folder beside it.
        """
        sweep_id = found.user_attrs.get(keys.SWEEP_ID, self.name)
        directory = self.directory.with_name(self.name)
        if not _is_of(directory, sweep_id, found):
            directory = directory.with_name(f"{self.name}-{sweep_id[:8]}")
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / IDENTITY_FILE).exists():
            (directory / IDENTITY_FILE).write_text(f"{sweep_id}\n")
        home = replace(self, directory=directory)
        vars(home)["database"] = self.database  # which is opened once
        return home


def _is_of(directory: Path, sweep_id: str, found: optuna.Study) -> bool:
    """Return whether a folder belongs to this sweep, or to no sweep yet."""
    with suppress(FileNotFoundError):
        return (directory / IDENTITY_FILE).read_text().strip() == sweep_id
    with suppress(FileNotFoundError, ValueError):  # an earlier version stored only its MLflow run's id
        known = json.loads((directory / record.SWEEP_FILE).read_text(encoding="utf-8")).get("parent_run_id")
        return known is not None and known == found.user_attrs.get(keys.PARENT_RUN_ID)
    return not any(directory.glob("trial-*"))


def locate_sweep(plan: SweepPlan, command: str | None = None) -> SweepContext:
    """Return where the sweep of a plan is. This loads the data, whose digest is part of the identity.

    Raises:
        ConfigError: the name cannot name a folder, or trials on other machines would use an SQLite file.
        DataError: the images cannot be loaded.
    """
    splits = load_splits(plan.base.data)
    asked = identity.sweep_identity(plan, splits.digest)
    name = identity.sweep_name(plan, splits.name, asked)
    url = storage.storage_url(plan.base.tracking.dir, plan.sweep.storage)
    if plan.sweep.executor.is_remote and not storage.is_server(url):
        raise ConfigError(
            f"sweep.executor.kind={plan.sweep.executor.kind} runs trials on other machines, which must not "
            "share an SQLite file: set sweep.storage=postgresql://user@host/database"
        )
    if not SAFE_NAME.fullmatch(name):
        raise ConfigError(f"sweep.name={name!r} names a folder too: use letters, digits, '-', '_' and '.'")
    return SweepContext(
        plan=plan,
        name=name,
        identity=asked,
        experiment=plan.base.tracking.experiment or splits.name,
        directory=Path(plan.base.tracking.dir).expanduser().resolve() / "sweeps" / name,
        storage=url,
        command=command or _command(plan),
    )


def context_of(plan: SweepPlan, found: optuna.Study) -> SweepContext:
    """Return where an existing sweep is; its images are not loaded, as they may be elsewhere."""
    known, name = found.user_attrs, found.study_name
    runs = Path(plan.base.tracking.dir).expanduser().resolve()
    return SweepContext(
        plan=plan,
        name=name,
        identity=known.get(keys.IDENTITY, {}),
        experiment=plan.base.tracking.experiment or "",
        directory=runs / "sweeps" / name,
        storage=storage.storage_url(plan.base.tracking.dir, plan.sweep.storage),
        command=_command(plan),
    ).of(found)


def _command(plan: SweepPlan) -> str:
    overrides = plan.public_overrides
    if len(overrides) < len(plan.overrides):
        overrides.append(f"sweep.storage={plan.sweep.storage}")
    return shlex.join(["harness", "sweep", *plan.config_dir_option, *map(shown, overrides)])


def recorded_plan(
    found: optuna.Study, url: str, overrides: Sequence[str], config_dir: Path, *, without: str | None = None
) -> SweepPlan:
    """Return the plan of a sweep that has begun, composed again from the overrides of its last command.

    Args:
        url: the address of its database.
        overrides: settings that differ now.
        without: the beginning of keys that are left out of the last command's overrides.

    Raises:
        SweepError: the sweep has not begun.
        ConfigError: its configuration can no longer be composed.
    """
    known = found.user_attrs.get(keys.PLAN)
    if known is None:
        raise SweepError(NOT_BEGUN.format(name=found.study_name))
    asked = [text for text in known["overrides"] if without is None or not path_of(text).startswith(without)]
    place = [f"sweep.name={found.study_name}", f"sweep.storage={url!r}"]
    return compose_sweep([*asked, *overrides, *place], config_dir)


def existing_study(home: SweepContext) -> optuna.Study | None:
    """Return the sweep's study if it exists; nothing is created.

    Raises:
        SweepError: a sweep of this name has another identity.
    """
    if not storage.database_exists(home.storage):
        return None
    found = study.find_study(home.database, home.name)
    asked = None if found is None else found.user_attrs.get(keys.IDENTITY)
    if asked is None:
        return None  # no study, or one whose first command was killed before it stored the identity
    identity.check_same_sweep(home.name, asked, home.identity)
    return found


def open_study(home: SweepContext, *, enqueue: bool = True) -> optuna.Study:
    """Return the study; create it if there is none.

    Args:
        enqueue: enqueue the plan's starting points; a worker passes False, as its own files may differ.

    Raises:
        SweepError: a sweep of this name has another identity or other code.
    """
    found = existing_study(home) or _create_study(home)
    check_code(found, allow_changes=home.plan.sweep.allow_changed_code)
    found.set_user_attr(keys.PLAN, record.plan_facts(home.plan))
    found.set_user_attr(keys.CALLED, time.time())
    if enqueue:
        with home.database.exclusive(home.name):
            home.database.retry(lambda: enqueue_points(found, home.plan.sweep))
    return found


def _create_study(home: SweepContext) -> optuna.Study:
    """Create the study, unless another process has just done so; it is complete once it has an identity."""
    with home.database.exclusive(f"study {home.name}"):
        found = existing_study(home)
        if found is None:
            database, sweep = home.database, home.plan.sweep
            found = database.retry(lambda: study.create_study(database, home.name, sweep))
            found.set_user_attr(keys.SWEEP_ID, uuid.uuid4().hex)
            found.set_user_attr(keys.IDENTITY, home.identity)
    return found


@contextmanager
def coordinator_lock(home: SweepContext) -> Iterator[Callable[[], None]]:
    """Hold the coordinator lock of the sweep in this block; it is also released if our process dies.

    Of all `harness sweep` commands for one sweep, the holder alone starts trials and writes the sweep's
    MLflow run. Claims (`ownership/claims.py`), not this lock, prevent a trial from running twice.

    Yields:
        A function that makes sure that we still hold the lock; it raises LostLockError if not. Call it often.

    Raises:
        LockedError: another process holds it.
        SweepError: the sweep's folder cannot be written.
    """
    try:
        home.directory.mkdir(parents=True, exist_ok=True)
        (home.directory / ".probe").touch()
        (home.directory / ".probe").unlink(missing_ok=True)
    except OSError as error:
        raise SweepError(
            f"{home.directory} cannot be written ({error.strerror}): choose another tracking.dir (MLRUNS_DIR)"
        ) from error
    with coordinator_lock_in(home.database, home.name) as keep:
        yield keep


def coordinator_lock_in(opened: RetryingStorage, name: str) -> AbstractContextManager[Callable[[], None]]:
    """Return the coordinator lock of a sweep; entering it raises LockedError if another process holds it."""
    return opened.exclusive(f"coordinator of {name}", timeout_s=0)


def is_closed(found: optuna.Study, plan: SweepPlan) -> bool:
    """Return whether the sweep has ended and all its results are recorded."""
    rows = read_rows(found)
    best = best_row(rows, plan.sweep.direction)
    is_recorded = found.user_attrs.get(keys.CLOSED) == record.closing_state(rows, best)
    return has_ended(rows, plan.sweep) and is_recorded and not needs_test(found, plan, best)


def needs_test(found: optuna.Study, plan: SweepPlan, best: TrialRow | None) -> bool:
    """Return whether the best trial's checkpoint is still to be evaluated on the test split."""
    if not plan.sweep.evaluate_test or best is None or best.checkpoint is None:
        return False
    return found.user_attrs.get(keys.TEST, {}).get("trial") != best.number
