"""Decides which process may work on which trial, so that no trial runs twice and none is forgotten.

`coordinator/scheduler.py` claims trials here; the trial's own process uses `lease.py`. Every claim is made
under the sweep's one lock and has an attempt number, which is stored with the trial. A process with an older
number has lost the trial, for instance because it was suspended, and exits without writing anything.

Optuna has heartbeats and `RetryHeartbeatStaleTrialCallback`, but these mark the trial as failed and create a
new one for the retry. We resume under the same number, in the same folder, as the same MLflow run. Optuna
looks for stale trials in `Study.optimize` only, which we do not call, and it records no owner.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from harness.search.database.optuna_private import study_id
from harness.search.database.optuna_tables import OpenTrials, TrialHead
from harness.search.database.retrying_storage import RetryingStorage
from harness.search.ownership.lease import beat_interval
from harness.search.ownership.process_id import ProcessId, end_process
from harness.search.study import keys

logger = logging.getLogger(__name__)

HEARTBEATS_TO_WAIT = 2  # for how many intervals a stale trial must stay stale to count as abandoned


@dataclass(frozen=True)
class Claim:
    """One process's right to work on a trial; a later claim with a higher attempt number replaces it."""

    number: int
    trial_id: int
    attempt: int  # 1 for the first
    to_fail: str | None = None  # if set, end the trial as failed, for this reason, instead of working on it


class Claims:
    """The claims of one coordinator or worker."""

    def __init__(self, study: optuna.Study, storage: RetryingStorage) -> None:
        self._study = study
        self._storage = storage
        self.me = ProcessId.current().to_json()
        self._now = time.monotonic
        self._silent_since: dict[int, float] = {}  # trial id -> when we first saw it stale, by `_now`
        # Number of the trial that is being claimed. If the answer to the commit is lost in an outage, the
        # next try sees that the trial is ours already.
        self._taking: int | None = None

    def take(
        self, num_trials: int, unsettled: Collection[int] = (), among: Collection[int] | None = None
    ) -> Claim | None:
        """Claim a trial that no process works on: an interrupted or enqueued one first, then a new one.

        Args:
            num_trials: how many trials the sweep may have in all; beyond that, no new one is begun.
            unsettled: numbers of the trials in our slots. The process of one may have just ended; how it
                ended must be recorded before the trial is claimed again.
            among: numbers of the only trials that may be claimed; None: any.
        """
        claim = self._storage.transact(
            self._study.study_name, lambda: self._take(num_trials, unsettled, among)
        )
        self._taking = None
        return claim

    def _take(
        self, num_trials: int, unsettled: Collection[int], among: Collection[int] | None
    ) -> Claim | None:
        survey = self._survey()
        abandoned = self._abandoned(survey)
        others = (
            trial
            for trial in survey.unfinished
            if trial.number not in unsettled and (among is None or trial.number in among)
        )
        trial = next((trial for trial in others if self._is_free(trial, abandoned)), None)
        if trial is not None:  # interrupted trials come before new ones
            return self._take_over(trial)
        return self._begin(survey.num_trials) if survey.num_trials < num_trials and among is None else None

    def has_more(self, num_trials: int, among: Collection[int] | None = None) -> bool:
        """Return whether some trial can be claimed now, or could be if its present owner dies.

        Args:
            num_trials: see `take`.
            among: see `take`.
        """
        survey = self._survey()
        if among is not None:
            return any(trial.number in among for trial in survey.unfinished)
        return survey.num_trials < num_trials or bool(survey.unfinished)

    def release(self, claim: Claim) -> None:
        """Make the trial free to be claimed; its process must have ended."""
        self._storage.transact(self._study.study_name, lambda: self._release(claim))

    def _release(self, claim: Claim) -> None:
        # If another process has claimed the trial since, it must remain the owner.
        if self.holds(claim):
            self._storage.set_trial_user_attr(claim.trial_id, keys.OWNER, None)

    def condemn(self, claim: Claim, reason: str) -> None:
        """Record that the trial is to be failed. Call it before asking the trial to stop.

        The process of a stopped trial releases the trial, which another machine would otherwise resume.
        """

        def note() -> None:
            if self.holds(claim):
                self._storage.set_trial_user_attr(claim.trial_id, keys.TO_FAIL, reason)

        self._storage.transact(self._study.study_name, note)

    def fail(self, claim: Claim, notes: Mapping[str, Any]) -> bool:
        """End the trial as failed, with these user attributes; False if another process has claimed it."""

        def end() -> bool:
            if not self.holds(claim):
                return False
            self._storage.set_trial_user_attrs(claim.trial_id, notes)
            return self._storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)

        return self._storage.transact(self._study.study_name, end)

    def holds(self, claim: Claim) -> bool:
        """Return whether the trial has not ended and this claim is its newest."""
        known = self._storage.get_trial_head(claim.trial_id, keys.ATTEMPT)
        return not known.state.is_finished() and bool(known.attr == claim.attempt)

    def renew(self, claim: Claim) -> None:
        """Record a heartbeat for a trial whose process has not begun, such as a job in a queue."""
        self._storage.record_heartbeat(claim.trial_id)

    def stale(self) -> set[int]:
        """Return the ids of trials whose last heartbeat is older than the lease."""
        return {trial.trial_id for trial in self._survey().unfinished if trial.is_stale}

    def abandoned(self) -> set[int]:
        """Return the ids of trials that have stayed stale for two heartbeat intervals, as seen by us.

        After the database's clock was set forward, or its machine was suspended, all trials look stale at
        once. A trial whose process is alive records another heartbeat within one interval.
        """
        return self._abandoned(self._survey())

    def _abandoned(self, survey: OpenTrials) -> set[int]:
        now = self._now()
        # Whether a trial is stale is decided by the database's clock. How long it has been stale is measured
        # by our monotonic clock, which cannot jump.
        stale = [trial.trial_id for trial in survey.unfinished if trial.is_stale]
        self._silent_since = {trial_id: self._silent_since.get(trial_id, now) for trial_id in stale}
        patience = HEARTBEATS_TO_WAIT * beat_interval(self._storage.lease_seconds)
        return {trial_id for trial_id, since in self._silent_since.items() if now - since > patience}

    def _survey(self) -> OpenTrials:
        return self._storage.get_open_trials(study_id(self._study), keys.OWNER)

    def _is_free(self, trial: TrialHead, abandoned: set[int]) -> bool:
        if trial.state == TrialState.WAITING or trial.attr is None:
            return True
        if trial.attr == self.me and trial.number == self._taking:
            return True  # an earlier try has claimed it, and the database's answer was lost
        owner = ProcessId.from_json(trial.attr)
        # Whether a process of this machine is dead can be seen without waiting for its lease to end.
        if owner.is_here and owner.process() is None:
            return True
        if trial.trial_id not in abandoned:
            return False
        if owner.trains:
            end_process(owner)  # it is suspended or hangs: it must not go on beside its successor
        return True

    def _begin(self, number: int) -> Claim:
        self._taking = number  # before the write, whose answer may be lost
        attrs = {keys.ATTEMPT: 1, keys.OWNER: self.me}
        trial = self._storage.create_taken_trial(study_id(self._study), attrs)
        return Claim(trial.number, trial.trial_id, attempt=1)

    def _take_over(self, trial: TrialHead) -> Claim:
        self._taking = trial.number
        attempt = (self._storage.get_trial_head(trial.trial_id, keys.ATTEMPT).attr or 0) + 1
        # First the heartbeat: a reader between the two writes must not see our trial as stale.
        self._storage.record_heartbeat(trial.trial_id)
        attrs = {keys.ATTEMPT: attempt, keys.OWNER: self.me}
        self._storage.set_trial_user_attrs(trial.trial_id, attrs)
        if trial.state == TrialState.WAITING:
            self._storage.set_trial_state_values(trial.trial_id, TrialState.RUNNING)
        to_fail = self._storage.get_trial_head(trial.trial_id, keys.TO_FAIL).attr
        return Claim(trial.number, trial.trial_id, attempt, to_fail)
