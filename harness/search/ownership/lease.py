"""Keeps a trial's claim alive from the process that trains it, and exits once another process has the trial.

`trial/run.py` enters a `Lease` while the trial is trained. The coordinator uses `claims.py` instead.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from optuna.trial import TrialState

from harness.errors import StorageError
from harness.search.database.retrying_storage import RetryingStorage
from harness.search.database.storage import BEATS_PER_LEASE
from harness.search.ownership.process_id import ProcessId
from harness.search.study import keys
from harness.training.devices.launch_ranks import is_rank

logger = logging.getLogger(__name__)

EXIT_SUPERSEDED = 0  # another process has the trial, and nothing is wrong
EXIT_RANK_SUPERSEDED = 1  # the launcher ends the other ranks only if one fails


class Lease:
    """The claim of a trial's own process: a thread records heartbeats while the lease is entered.

    Args:
        attempt: the number of the claim; the lease is lost when the trial has a higher one.
        interval_s: seconds between two heartbeats.
        leave: called when another process has the trial. By default it ends this process at once, so that
            no cleanup code can write to a file, Optuna or MLflow.
    """

    def __init__(
        self,
        storage: RetryingStorage,
        trial_id: int,
        attempt: int,
        interval_s: float,
        leave: Callable[[], Any] = lambda: os._exit(EXIT_RANK_SUPERSEDED if is_rank() else EXIT_SUPERSEDED),
    ) -> None:
        self._storage = storage
        self._trial_id = trial_id
        self._attempt = attempt
        self._interval_s = interval_s
        self._leave = leave
        self._awake = _clock()  # when this process last knew that it was not suspended
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def is_held(self) -> bool:
        """Return whether the trial is running and this claim is its newest."""
        known = self._storage.get_trial_head(self._trial_id, keys.ATTEMPT)
        return known.state == TrialState.RUNNING and known.attr == self._attempt

    def check(self) -> None:
        """Exit if another process has the trial. Call it before anything is written."""
        if not self.is_held():
            logger.warning("this trial was taken over by another process: leaving it")
            self._leave()

    def check_after_sleep(self) -> None:
        """Ask the database only if this process may have been suspended; called after every batch.

        The heartbeat thread notices a lost claim unless the whole process is suspended. So the database is
        asked only if more than half a lease has passed since the previous call.
        """
        before, self._awake = self._awake, _clock()
        if self._awake - before > BEATS_PER_LEASE / 2 * self._interval_s:
            self.check()

    def check_last(self) -> None:
        """Stop the heartbeats and check once more. Call it before telling Optuna how the trial ended.

        The heartbeat thread would otherwise see the ended trial and believe it was taken over.
        """
        self._stop_beating()
        self.check()

    def let_go(self) -> None:
        """Make the trial free to be claimed at once, without waiting for the lease to end."""
        self.check()
        self._storage.set_trial_user_attr(self._trial_id, keys.OWNER, None)

    def __enter__(self) -> Lease:
        self.check()
        # By the new owner the coordinator sees that we have begun; it then sends no more heartbeats for us.
        owner = ProcessId.current(trains=True)
        self._storage.set_trial_user_attr(self._trial_id, keys.OWNER, owner.to_json())
        self._storage.record_heartbeat(self._trial_id)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_beating()

    def _stop_beating(self) -> None:
        self._done.set()
        self._thread.join(self._interval_s)  # no longer: it may hang if the database does not answer

    def _beat(self) -> None:
        while not self._done.wait(self._interval_s):
            try:
                self._storage.record_heartbeat(self._trial_id)
                self.check()
            except StorageError as error:
                # Not fatal: the next heartbeat may succeed, and the report after the epoch retries too.
                logger.warning("%s", error)


def _clock() -> float:
    """Return seconds by a clock that also counts while the machine is suspended, where the system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def beat_interval(lease_seconds: float) -> float:
    """Return the seconds between two heartbeats."""
    return lease_seconds / BEATS_PER_LEASE
