"""`RunStore`: opens the run store, creates runs in it, and opens recorded ones again.

`open_store` is the entry; training, search, export and `runs.py` call it. It creates MLflow's database where
there is none, and records the operations that an earlier outage left in the spool (`spool.py`). Read
`mlflow_tracker.py` next: it writes to one run.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException

from harness.config.schema import TrackingConfig
from harness.errors import NoSuchRunError, TrackingError, first_line
from harness.files import create_database
from harness.tracking import names
from harness.tracking.address import DATABASE, database_uri, store_identity, store_uri
from harness.tracking.mlflow_tracker import MlflowTracker
from harness.tracking.mlflow_writes import NO_SUCH_RUN, STORE_ERRORS, apply, is_refusal
from harness.tracking.moved import follow_move
from harness.tracking.spool import Points, Spool, spooled_runs
from harness.tracking.tracker import RunStatus

logger = logging.getLogger(__name__)

SPOOL = "spool"
LOCK_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class RunStore:
    """An opened run store."""

    client: MlflowClient
    uri: str
    directory: Path  # the folder of runs (tracking.dir): database, artifacts, spool, checkpoints

    @property
    def is_local(self) -> bool:
        """Whether the store is a database and not an MLflow server, which places artifacts itself."""
        return not self.uri.startswith(("http:", "https:", "databricks"))

    @property
    def artifact_uri(self) -> str:
        """The artifacts' folder as an absolute URI, escaped, so that both server and client can use it."""
        return (self.directory / "artifacts").as_uri()

    @property
    def spool_directory(self) -> Path:
        """The folder of this store's spools; another store that is used with `directory` has its own."""
        return self.directory / SPOOL / store_identity(self.uri, self.directory)

    def spool_of(self, run_id: str) -> Spool:
        return Spool(self.spool_directory, run_id)

    def experiment_id(self, name: str) -> str:
        """Return the experiment's id, creating it the first time."""
        try:
            return self._find_experiment(name) or self._create_experiment(name)
        except STORE_ERRORS as error:
            raise TrackingError(
                f"experiment {name!r} cannot be opened in {self.uri}: {first_line(error)}"
            ) from error

    def start_run(
        self,
        name: str | None,
        experiment: str,
        tags: Mapping[str, str],
        parent_run_id: str | None = None,
        run_id: str | None = None,
    ) -> MlflowTracker:
        """Open a new run, or the run `run_id` again.

        Raises:
            TrackingError: the store cannot be written, or has no run `run_id`.
        """
        tags = dict(tags) | ({names.PARENT: parent_run_id} if parent_run_id else {})
        try:
            if run_id is not None:
                return self._resume(run_id, tags)
            experiment_id = self.experiment_id(experiment)
            run = self.client.create_run(experiment_id, tags=tags, run_name=name)
        except STORE_ERRORS as error:
            if run_id is not None and is_refusal(error):
                raise NoSuchRunError(
                    f"run {run_id} cannot be opened in {self.uri} ({first_line(error)}): set "
                    "MLFLOW_TRACKING_URI or tracking.dir to the run store that it was begun in; if it was "
                    "deleted for good, begin anew (a sweep: under another sweep.name)"
                ) from error
            raise TrackingError(f"a run cannot be opened in {self.uri}: {first_line(error)}") from error
        return MlflowTracker(self.client, run.info.run_id, self.spool_of(run.info.run_id))

    def has_run(self, run_id: str) -> bool:
        """Return whether the store holds a run.

        Raises:
            TrackingError: it cannot be read.
        """
        try:
            self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == NO_SUCH_RUN:
                return False
            raise TrackingError(f"{self.uri} cannot be read: {first_line(error)}") from error
        return True

    def find_run(self, experiment: str, tags: Mapping[str, str]) -> str | None:
        """Return the id of the experiment's oldest run that has these tags.

        Raises:
            TrackingError: the store cannot be read.
        """
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        try:
            experiment_id = self._find_experiment(experiment)
            if experiment_id is None:
                return None
            order = ["attributes.start_time ASC"]
            found = self.client.search_runs([experiment_id], wanted, max_results=1, order_by=order)
        except STORE_ERRORS as error:
            raise TrackingError(f"runs cannot be read from {self.uri}: {first_line(error)}") from error
        return found[0].info.run_id if found else None

    def keep_view(self, experiment: str, view: tuple[str, str]) -> None:
        """Save a view of an experiment's runs (see `views.py`); a failure is logged and ends nothing."""
        try:
            self.client.set_experiment_tag(self.experiment_id(experiment), *view)
        except (*STORE_ERRORS, TrackingError) as error:
            logger.warning("MLflow keeps no view of the trials: %s", first_line(error))

    def close_run(self, run_id: str, status: RunStatus) -> None:
        """Close a run whose process is dead; the status waits in the spool if the store is unreachable."""
        MlflowTracker(self.client, run_id, self.spool_of(run_id)).finish(status)

    def reopen_run(self, run_id: str) -> MlflowTracker:
        """Open an ended run to add to it; its status and its times stay, whatever `finish` is called with.

        Raises:
            TrackingError: the store cannot be read, or has no run `run_id`.
        """
        try:
            return self._open_again(run_id, keeps_status=True)
        except STORE_ERRORS as error:
            raise TrackingError(
                f"run {run_id} cannot be opened in {self.uri}: {first_line(error)}"
            ) from error

    def forget_checkpoint(self, run_id: str) -> None:
        """Record that an ended run's checkpoint was removed; an unreachable store receives that later."""
        MlflowTracker(self.client, run_id, self.spool_of(run_id), keeps_status=True).forget_checkpoint()

    def tags_of(self, run_id: str) -> dict[str, str]:
        """Return a run's tags.

        Raises:
            TrackingError: the store cannot be read, or has no such run.
        """
        try:
            return dict(self.client.get_run(run_id).data.tags)
        except STORE_ERRORS as error:
            raise TrackingError(f"run {run_id} cannot be read: {first_line(error)}") from error

    def note(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of an ended run; an unreachable store receives them later."""
        MlflowTracker(self.client, run_id, self.spool_of(run_id), keeps_status=True).set_tags(tags)

    def _resume(self, run_id: str, tags: Mapping[str, str]) -> MlflowTracker:
        tracker = self._open_again(run_id, keeps_status=False)
        self.client.update_run(run_id, status="RUNNING")
        tracker.set_tags(tags)
        return tracker

    def _open_again(self, run_id: str, *, keeps_status: bool) -> MlflowTracker:
        spool = self.spool_of(run_id)
        # First the spool is read, then the store, as another process may be moving points from the spool to
        # the store. In the other order, a point that is moved between the two reads would be missed.
        recorded = spool.points()
        run = self.client.get_run(run_id)
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            self.client.restore_run(run_id)
            logger.warning(
                "run %s (%s) had been deleted in MLflow: it is restored", run_id, run.info.run_name
            )
        recorded |= _recorded_points(self.client, run)
        return MlflowTracker(self.client, run_id, spool, recorded=recorded, keeps_status=keeps_status)

    def _find_experiment(self, name: str) -> str | None:
        found = self.client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id if found is not None else None

    def _create_experiment(self, name: str) -> str:
        location = self.artifact_uri if self.is_local else None
        with _creation_lock(self.directory):
            return self._find_experiment(name) or self.client.create_experiment(
                name, artifact_location=location
            )


def open_store(tracking: TrackingConfig, *, to_read: bool = False) -> RunStore:
    """Open the run store, and record the operations that an earlier outage left in the spool.

    The store is created if there is none.

    Args:
        to_read: open an existing store, which need not be writable, and create nothing.

    Raises:
        TrackingError: it cannot be written, reached, or read by this MLflow.
    """
    directory = Path(tracking.dir).expanduser().resolve()
    uri = store_uri(tracking)
    _silence()
    _check_installation(uri)
    try:
        if not to_read:
            _check_writable(directory)
        if uri == database_uri(directory) and not to_read:
            _create_database(directory)
            follow_move(directory)
        store = RunStore(_connect(uri), uri, directory)
        store.client.search_experiments(max_results=1)
    except STORE_ERRORS as error:
        raise TrackingError(f"the run store {uri} cannot be used: {first_line(error)}") from error
    if not to_read or _is_writable(directory):
        _replay_spools(store)
    elif waiting := list(spooled_runs(store.spool_directory)):
        logger.warning(
            "%d runs have records in %s that are not shown, as %s cannot be written",
            len(waiting),
            store.spool_directory,
            directory,
        )
    return store


def _check_installation(uri: str) -> None:
    """Refuse a database if MLflow lies under a path with a '%'.

    Alembic, which creates MLflow's tables, takes a '%' in the path of its scripts for interpolation, as in an
    ini file.
    """
    if "%" in mlflow.__file__ and not uri.startswith(("http:", "https:")):
        raise TrackingError(
            f"MLflow cannot open a database while it is installed under a path with a '%' "
            f"({Path(mlflow.__file__).parent}): move the project, or give make a VENV=FOLDER without one"
        )


def _connect(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _is_writable(directory: Path) -> bool:
    try:
        _probe(directory)
    except OSError:
        return False
    return True


def _probe(directory: Path) -> None:
    probe = directory / f".probe-{os.getpid()}-{time.monotonic_ns()}"
    probe.touch()
    probe.unlink()


def _check_writable(directory: Path) -> None:
    if "?" in str(directory):
        raise TrackingError(
            f"tracking.dir={directory} holds a '?', which a database address cannot: choose another"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _probe(directory)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TrackingError(
            f"tracking.dir={directory} cannot be written ({reason}): choose another"
        ) from error


def _create_database(directory: Path) -> None:
    """Create MLflow's database, if there is none, by `create_database`: under a lock and another name."""

    def create(path: Path) -> None:
        logger.info("creating the run store %s (a few seconds, once)", directory / DATABASE)
        _connect(f"sqlite:///{path.as_posix()}").search_experiments(max_results=1)

    if not (directory / DATABASE).exists():
        create_database(directory / DATABASE, _creation_lock(directory), create)


def _creation_lock(directory: Path) -> FileLock:
    return FileLock(directory / ".create.lock", timeout=LOCK_TIMEOUT_S)


def _silence() -> None:
    """Keep alembic's list of migrations off the terminal, and tracebacks of errors that we report."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _recorded_points(client: MlflowClient, run: Run) -> Points:
    points: Points = {}
    for key in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, key):
            points[key, point.step] = (point.value, point.timestamp)
    return points


def _replay_spools(store: RunStore) -> None:
    """Record what an earlier outage of this store left; log which spools wait for other stores."""
    _adopt_unmarked(store)
    for run_id in spooled_runs(store.spool_directory):
        spool = store.spool_of(run_id)
        try:
            spool.replay(partial(apply, store.client, spool))
            if spool.is_empty:  # otherwise another process is replaying it
                logger.info("what run %s had kept on disk is recorded", run_id)
        except STORE_ERRORS as error:
            logger.warning(
                "run %s still has records in %s: %s", run_id, store.spool_directory, first_line(error)
            )
    for folder in sorted((store.directory / SPOOL).glob("*/")):
        if folder != store.spool_directory and (waiting := list(spooled_runs(folder))):
            _say_once(f"{len(waiting)} run(s) have records in {folder} that wait for another run store")


@functools.cache
def _say_once(message: str) -> None:
    logger.info("%s", message)


def _adopt_unmarked(store: RunStore) -> None:
    """Move spools of earlier versions, which used one folder for all stores, if this store has the run."""
    for run_id in spooled_runs(store.directory / SPOOL):
        if store.has_run(run_id):
            store.spool_directory.mkdir(parents=True, exist_ok=True)
            # The artifacts' files first: a kill between the two leaves lines whose files are there already.
            for name in (run_id, f"{run_id}.jsonl"):
                with suppress(FileNotFoundError):
                    (store.directory / SPOOL / name).rename(store.spool_directory / name)
