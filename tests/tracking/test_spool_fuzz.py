"""Any order of outages, kills, replays and resumes records every point exactly once.

The machine drives real trackers and real spool files. Most sequences run against a store in memory, whose
every call may fail before or after it has taken effect; some against the real database.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mlflow.exceptions import MlflowException

from harness.config.schema import TrackingConfig
from harness.tracking.mlflow_tracker import MlflowTracker
from harness.tracking.mlflow_writes import STORE_ERRORS, apply
from harness.tracking.spool import Operation, Spool
from harness.tracking.store import RunStore, open_store

EPOCHS = 8
CALLS = ("log_batch", "log_artifact", "set_terminated", "get_run", "get_metric_history", "update_run")


class Killed(BaseException):
    """The process is gone at this very moment."""


class MemoryClient:
    """What of MLflow's client the tracker uses, in memory; like its database, it keeps equal rows once."""

    def __init__(self) -> None:
        self.status = "RUNNING"
        self.points: dict[str, set[tuple[float, int, int]]] = {}
        self.tags: dict[str, str] = {}
        self.artifacts: dict[str, str] = {}

    def get_run(self, run_id: str) -> Any:
        data = SimpleNamespace(metrics=dict.fromkeys(self.points, 0.0), params={}, tags=self.tags)
        info = SimpleNamespace(run_id=run_id, status=self.status, lifecycle_stage="active", experiment_id="0")
        return SimpleNamespace(data=data, info=info, outputs=None)

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        rows = sorted(self.points.get(key, ()), key=lambda row: row[2])
        return [SimpleNamespace(value=value, timestamp=time, step=step) for value, time, step in rows]

    def update_run(self, run_id: str, status: str) -> None:
        self.status = status

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = (), **_: Any) -> None:
        for metric in metrics:
            self.points.setdefault(metric.key, set()).add((metric.value, metric.timestamp, metric.step))
        self.tags.update({tag.key: tag.value for tag in tags})

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        self.artifacts[Path(path).name] = Path(path).read_text()

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self.status = status

    def search_experiments(self, **_: Any) -> list[Any]:
        return []


class SpoolMachine(RuleBasedStateMachine):
    """One run, its process (which is killed and resumed), and other processes that replay."""

    slow_store: ClassVar[Path | None] = None  # a real database to copy; None: in memory

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="spool-fuzz-"))
        self.run_id, self.history, self.finished = "r" * 32, 0, False
        self.tags, self.texts = {}, {}  # type: ignore[var-annotated]
        self.down: set[str] = set()
        self.fails_after = self.kills_in = 0  # how many calls from now
        self.store = self._open()
        self.tracker: MlflowTracker | None = self._first_tracker()

    def _open(self) -> RunStore:
        if self.slow_store is None:
            return self._guarded(RunStore(MemoryClient(), "memory://", self.folder))  # type: ignore[arg-type]
        shutil.copy(self.slow_store, self.folder / "mlflow.db")
        return self._guarded(open_store(TrackingConfig(dir=str(self.folder))))

    def _first_tracker(self) -> MlflowTracker:
        if self.slow_store is None:
            return MlflowTracker(self.store.client, self.run_id, self.store.spool_of(self.run_id))
        tracker = self.store.start_run("a", "exp", {})
        self.run_id = tracker.run_id
        return tracker

    def _guarded(self, store: RunStore) -> RunStore:
        for name in CALLS:
            setattr(store.client, name, self._guard(name, getattr(store.client, name)))
        return store

    def _guard(self, name: str, call: Any) -> Any:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if name in self.down:
                raise MlflowException("away")
            result = call(*args, **kwargs)
            self.kills_in -= 1
            self.fails_after -= 1
            if self.kills_in == 0:
                raise Killed
            if self.fails_after == 0:
                raise MlflowException("the answer is lost, but it was done")
            return result

        return guarded

    def _do(self, what: Any) -> bool:
        """Do something in the run's process; return whether it survived."""
        try:
            what()
        except Killed:
            self.tracker = None
            return False
        return True

    # ── the run's process ──

    @precondition(lambda self: self.tracker is not None and not self.finished and self.history < EPOCHS)
    @rule()
    def train_an_epoch(self) -> None:
        epoch = self.history
        tracker = self.tracker
        assert tracker is not None
        if self._do(lambda: tracker.log_epoch(epoch, {"val/loss": 1 / (epoch + 1)})):
            self.history += 1  # its checkpoint is written

    @precondition(lambda self: self.tracker is not None and not self.finished)
    @rule(key=st.sampled_from("ab"), value=st.integers(0, 9))
    def set_a_tag(self, key: str, value: int) -> None:
        tracker = self.tracker
        assert tracker is not None
        self.tags[key] = (
            {str(value)}
            if self._do(lambda: tracker.set_tags({key: str(value)}))
            else {str(value), *self.tags.get(key, {None})}
        )

    @precondition(lambda self: self.tracker is not None and not self.finished)
    @rule(name=st.sampled_from(["a.txt", "b.txt"]), text=st.integers(0, 9))
    def log_a_text(self, name: str, text: int) -> None:
        tracker = self.tracker
        assert tracker is not None
        self.texts[name] = (
            {str(text)}
            if self._do(lambda: tracker.log_text(str(text), name))
            else {str(text), *self.texts.get(name, {None})}
        )

    @precondition(lambda self: self.tracker is not None and self.history == EPOCHS and not self.finished)
    @rule()
    def finish(self) -> None:
        tracker = self.tracker
        assert tracker is not None

        def end() -> None:
            tracker.log_summary({"best_epoch": 3})
            tracker.finish("FINISHED")

        self.finished = self._do(end)

    @precondition(lambda self: self.tracker is not None and not self.finished)
    @rule()
    def kill(self) -> None:
        self.tracker = None

    @precondition(lambda self: self.tracker is not None)
    @rule(lane=st.sampled_from(["records", "artifacts"]), torn=st.integers(1, 30))
    def kill_while_appending(self, lane: str, torn: int) -> None:
        """The line had reached the disk in part; what it said is said again on resume."""
        self.tracker = None
        path = getattr(self.store.spool_of(self.run_id), lane).path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write('{"op": "metrics", "points": [["val/loss", 1.0'[:torn])

    @precondition(lambda self: self.tracker is None)
    @rule()
    def resume(self) -> None:
        """As a trial does: its checkpoint's history is recorded again."""
        opened: list[MlflowTracker] = []
        try:
            opened.append(self.store.start_run(None, "exp", {}, run_id=self.run_id))
        except Exception:  # the store is away: the trial is started again later
            return
        except Killed:
            return
        self.tracker = opened[0]
        self.finished = False

        def repeat() -> None:
            for epoch in range(self.history):
                opened[0].log_epoch(epoch, {"val/loss": 1 / (epoch + 1)})

        self._do(repeat)

    # ── the world ──

    @rule(down=st.sampled_from([(), (), CALLS, ("log_artifact",), ("log_batch",)]))
    def store_goes_or_comes(self, down: tuple[str, ...]) -> None:
        self.down = set(down)

    @rule(calls=st.integers(1, 4))
    def an_answer_gets_lost(self, calls: int) -> None:
        self.fails_after = calls

    @precondition(lambda self: not self.finished)
    @rule(calls=st.integers(1, 4))
    def a_kill_is_near(self, calls: int) -> None:
        self.kills_in = calls

    @rule()
    def another_command_replays(self) -> None:
        spool = Spool(self.store.spool_directory, self.run_id)
        try:
            spool.replay(lambda operation: apply(self.store.client, spool, operation))
        except (Killed, *STORE_ERRORS):
            pass

    @precondition(lambda self: self.tracker is not None and not self.finished and self.history < EPOCHS)
    @rule()
    def train_an_epoch_while_another_command_replays(self) -> None:
        spool = Spool(self.store.spool_directory, self.run_id)
        self.kills_in = 0

        def apply_slowly(operation: Operation) -> list[Operation]:
            if self.tracker is not None and self.history < EPOCHS:
                self.train_an_epoch()
            return apply(self.store.client, spool, operation)

        with suppress(*STORE_ERRORS):
            spool.replay(apply_slowly)

    @invariant()
    def no_point_is_double(self) -> None:
        self._check_points(self._points())

    def _points(self) -> dict[str, list[tuple[int, float]]]:
        if self.slow_store is None:
            stored = self.store.client.points  # type: ignore[attr-defined]
            return {key: [(step, value) for value, _, step in rows] for key, rows in stored.items()}
        client = type(self.store.client)(self.store.uri)
        keys = client.get_run(self.run_id).data.metrics
        return {
            key: [(point.step, point.value) for point in client.get_metric_history(self.run_id, key)]
            for key in keys
        }

    def _check_points(self, points: dict[str, list[tuple[int, float]]]) -> None:
        for key, rows in points.items():
            steps = Counter(step for step, _ in rows)
            assert max(steps.values(), default=1) == 1, (key, rows)

    def teardown(self) -> None:
        """All is well again: the run goes on to its end, and the next command replays what waits."""
        try:
            self.down, self.fails_after, self.kills_in = set(), 0, 0
            if self.tracker is None:
                self.resume()
            while self.history < EPOCHS:
                self.train_an_epoch()
            if not self.finished:
                self.finish()
            self.another_command_replays()
            self._check_the_end()
        finally:
            shutil.rmtree(self.folder)

    def _check_the_end(self) -> None:
        points = self._points()
        self._check_points(points)
        assert sorted(points["val/loss"]) == [(epoch, 1 / (epoch + 1)) for epoch in range(EPOCHS)]
        assert [value for _, value in points["best_epoch"]] == [3]
        spool = self.store.spool_of(self.run_id)
        assert spool.is_empty
        assert not spool.refused.exists()
        run = self.store.client.get_run(self.run_id)
        assert run.info.status == "FINISHED"
        for key, allowed in self.tags.items():
            assert run.data.tags.get(key) in allowed
        if self.slow_store is None:
            for name, allowed in self.texts.items():
                assert self.store.client.artifacts.get(name) in allowed  # type: ignore[attr-defined]


def fuzz(examples: int, machine: type[SpoolMachine] = SpoolMachine) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_every_point_is_recorded_exactly_once() -> None:
    fuzz(40)


@pytest.mark.slow
def test_every_point_is_recorded_exactly_once_in_thousands_of_sequences() -> None:
    fuzz(2_500)


@pytest.mark.slow
def test_every_point_is_recorded_exactly_once_in_the_real_database(
    empty_databases: list[Path],
) -> None:
    class RealMachine(SpoolMachine):
        slow_store = empty_databases[1]

    fuzz(25, RealMachine)
