"""Where one sweep lives: its name, folder, lock and study."""

from __future__ import annotations

import json
import re
import shlex
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna

from harness.config.compose import CONFIG_DIR, SweepPlan
from harness.credentials import shown
from harness.data import load_splits
from harness.errors import ConfigError, SweepError
from harness.search.coordinator.completion import has_ended
from harness.search.report import parent_run as record
from harness.search.study import identity as question
from harness.search.study import keys, storage
from harness.search.study import trials as study
from harness.search.study.identity import check_code
from harness.search.study.retrying_storage import RetryingStorage
from harness.search.study.trials import TrialRow, best_row, read_rows
from harness.search.suggest.starting_points import enqueue_points

IDENTITY_FILE = "sweep-identity.txt"  # in a sweep's folder: whose it is
SAFE_NAME = re.compile(r"[\w][\w.+-]{0,120}")


@dataclass(frozen=True)
class SweepContext:
    """One sweep on this machine, whether it has begun or not."""

    plan: SweepPlan
    name: str
    question: dict[str, Any]
    experiment: str
    directory: Path
    storage: str  # URL of the database
    command: str  # that continues it

    @cached_property
    def database(self) -> RetryingStorage:
        """The database, opened once: who has reached it waits for its return, who has not says so at once.

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
        """Return the same home with the same plan in another state: its arms composed."""
        home = replace(self, plan=plan)
        if "database" in vars(self):
            vars(home)["database"] = self.database  # which is opened once
        return home

    def of(self, found: optuna.Study) -> SweepContext:
        """Return the home in a folder that is this very sweep's.

        Another sweep of the name, whose database is gone or elsewhere, keeps its folder, as its runs point
        to their checkpoints there, and what it left is nothing to go on from. Ours is then beside it.
        """
        identity = found.user_attrs.get(keys.IDENTITY, self.name)
        directory = self.directory.with_name(self.name)
        if not _is_of(directory, identity, found):
            directory = directory.with_name(f"{self.name}-{identity[:8]}")
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / IDENTITY_FILE).exists():
            (directory / IDENTITY_FILE).write_text(f"{identity}\n")
        home = replace(self, directory=directory)
        vars(home)["database"] = self.database  # which is opened once
        return home


def _is_of(directory: Path, identity: str, found: optuna.Study) -> bool:
    """Return whether a folder is a sweep's, or nobody's yet."""
    with suppress(FileNotFoundError):
        return (directory / IDENTITY_FILE).read_text().strip() == identity
    with suppress(FileNotFoundError, ValueError):  # of an earlier version, which noted its run alone
        known = json.loads((directory / record.SWEEP_FILE).read_text(encoding="utf-8")).get("parent_run_id")
        return known is not None and known == found.user_attrs.get(keys.PARENT_RUN_ID)
    return not any(directory.glob("trial-*"))


def locate_sweep(plan: SweepPlan, command: str | None = None) -> SweepContext:
    """Return where the sweep of a plan lives, which needs its data: they are part of the question.

    Raises:
        ConfigError: a name that cannot be a folder, or a database that not all machines can share.
        DataError: images that cannot be had.
    """
    splits = load_splits(plan.base.data)
    asked = question.sweep_question(plan, splits.digest)
    name = question.sweep_name(plan, splits.name, asked)
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
        question=asked,
        experiment=plan.base.tracking.experiment or splits.name,
        directory=Path(plan.base.tracking.dir).expanduser().resolve() / "sweeps" / name,
        storage=url,
        command=command or _command(plan),
    )


def _command(plan: SweepPlan) -> str:
    config_dir = [] if plan.config_dir == CONFIG_DIR else ["--config-dir", str(plan.config_dir)]
    overrides = plan.public_overrides
    if len(overrides) < len(plan.overrides):
        overrides.append(f"sweep.storage={plan.sweep.storage}")
    return shlex.join(["harness", "sweep", *config_dir, *map(shown, overrides)])


def existing_study(home: SweepContext) -> optuna.Study | None:
    """Return the sweep's study if it exists; nothing is created.

    Raises:
        SweepError: its trials answered another question.
    """
    if not storage.database_exists(home.storage):
        return None
    found = study.find_study(home.database, home.name)
    asked = None if found is None else found.user_attrs.get(keys.QUESTION)
    if asked is None:
        return None  # also where its first call was killed before it could note what it asks
    question.check_same_question(home.name, asked, home.question)
    return found


def open_study(home: SweepContext, *, enqueue: bool = True) -> optuna.Study:
    """Return the study, created here and now if this is the sweep's first call.

    Args:
        enqueue: our starting points are the sweep's; a machine that joins may have others in its files.

    Raises:
        SweepError: its trials answered another question, or with other code.
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
    """Create the study unless another call does at this moment; the question makes it one."""
    with home.database.exclusive(f"study {home.name}"):
        found = existing_study(home)
        if found is None:
            database, sweep = home.database, home.plan.sweep
            found = database.retry(lambda: study.create_study(database, home.name, sweep))
            found.set_user_attr(keys.IDENTITY, uuid.uuid4().hex)
            found.set_user_attr(keys.QUESTION, home.question)
    return found


@contextmanager
def coordinating(home: SweepContext) -> Iterator[Callable[[], None]]:
    """Be the one coordinator of the sweep; the system lets go with us.

    It keeps two of them from sharing one machine's devices and one parent run; that no trial runs twice does
    not hang on it (see claims).

    Yields:
        What makes sure that we still are, to be called often; it raises LostLockError if not.

    Raises:
        LockedError: another process is.
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
    with coordinator_lock(home.database, home.name) as keep:
        yield keep


def coordinator_lock(opened: RetryingStorage, name: str) -> AbstractContextManager[Callable[[], None]]:
    """Return the lock of a sweep's one coordinator; entered, it raises LockedError if another holds it."""
    return opened.exclusive(f"coordinator of {name}", timeout_s=0)


def is_closed(found: optuna.Study, plan: SweepPlan) -> bool:
    """Return whether there is nothing left to train, and everything about it is recorded."""
    rows = read_rows(found)
    best = best_row(rows, plan.sweep.direction)
    is_recorded = found.user_attrs.get(keys.CLOSED) == record.closing_state(rows, best)
    return has_ended(rows, plan.sweep) and is_recorded and not needs_test(found, plan, best)


def needs_test(found: optuna.Study, plan: SweepPlan, best: TrialRow | None) -> bool:
    """Return whether the best trial's checkpoint is still to be evaluated on the test split."""
    if not plan.sweep.evaluate_test or best is None or best.checkpoint is None:
        return False
    return found.user_attrs.get(keys.TEST, {}).get("trial") != best.number
