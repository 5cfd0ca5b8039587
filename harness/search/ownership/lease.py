"""A trial's hold on itself, in the process that trains it: heartbeats, and leaving once it was taken over.

`trial/run.py` enters the lease around a trial's work. `claims.py` is the other side: the coordinator's view
of who works on what.
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
from harness.search.ownership.process_id import Owner
from harness.search.study import keys
from harness.search.study.retrying_storage import PatientStorage
from harness.search.study.storage import BEATS_PER_LEASE
from harness.training.ranks import is_rank

logger = logging.getLogger(__name__)

EXIT_SUPERSEDED = 0  # the trial is another process's by now, and nothing is wrong
EXIT_RANK_SUPERSEDED = 1  # a rank that leaves early must take the others along


class Lease:
    """A trial's hold on itself, in the process that works on it; entered around the work.

    Args:
        leave: what to do when the trial was taken over; by default the process ends at once, so that nothing
            of it can reach a file, Optuna or MLflow any more.
    """

    def __init__(
        self,
        storage: PatientStorage,
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
        self._awake = _clock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def is_held(self) -> bool:
        """Return whether the trial is still to be worked on, and by us."""
        known = self._storage.get_standing(self._trial_id, keys.ATTEMPT)
        return known.state == TrialState.RUNNING and known.attr == self._attempt

    def check(self) -> None:
        """Leave if the trial is somebody else's by now; to be called before anything is written."""
        if not self.is_held():
            logger.warning("this trial was taken over by another process: leaving it")
            self._leave()

    def check_after_sleep(self) -> None:
        """Check as above where it costs nothing: the trial can only be lost while we did not beat.

        To be called often; a long time between two calls is what a process sees of having been stopped.
        """
        before, self._awake = self._awake, _clock()
        if self._awake - before > BEATS_PER_LEASE / 2 * self._interval_s:
            self.check()

    def check_last(self) -> None:
        """Check and beat no more: what follows ends the trial, which the next beat would take for a loss."""
        self._stop_beating()
        self.check()

    def let_go(self) -> None:
        """Let others take the trial at once."""
        self.check()
        self._storage.set_trial_user_attr(self._trial_id, keys.OWNER, None)

    def __enter__(self) -> Lease:
        self.check()
        owner = Owner.current(trains=True)
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
        self._thread.join(self._interval_s)

    def _beat(self) -> None:
        while not self._done.wait(self._interval_s):
            try:
                self._storage.record_heartbeat(self._trial_id)
                self.check()
            except StorageError as error:  # the next beat may reach it; the epoch's report decides
                logger.warning("%s", error)


def _clock() -> float:
    """Return seconds that go on while the machine sleeps, where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def beat_interval(lease_seconds: float) -> float:
    """Return the seconds between two heartbeats."""
    return lease_seconds / BEATS_PER_LEASE
