"""Who works on which trial: the rules by which no trial runs twice and none is forgotten.

Every claim is made under the sweep's one lock. A claim has an attempt number, noted at the trial: whoever
holds an older one has lost the trial (it was asleep for too long, say) and must leave without a word.
A process that works on a trial beats for it, by the database's clock. One that stops lets go of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from harness.search.ownership.lease import beat_interval
from harness.search.ownership.process_id import Owner, end_process
from harness.search.study import keys
from harness.search.study.optuna_private import Standing, Survey
from harness.search.study.retrying_storage import PatientStorage

logger = logging.getLogger(__name__)

BEATS_LISTENED_FOR = 2


@dataclass(frozen=True)
class Claim:
    """A trial to work on."""

    number: int
    trial_id: int
    attempt: int  # 1 for the first
    to_fail: str | None = None  # why it is not to be worked on, but to be ended as failed


class Claims:
    """A coordinator's or worker's view of who works on what."""

    def __init__(self, study: optuna.Study, storage: PatientStorage) -> None:
        self._study = study
        self._storage = storage
        self.me = Owner.current().to_json()
        self._now = time.monotonic
        self._silent_since: dict[int, float] = {}  # trial id -> by that clock
        self._taking: int | None = None  # the number of a trial that we may have taken unheard, in an outage

    def take(self, num_trials: int, unsettled: Collection[int] = ()) -> Claim | None:
        """Return a trial that nobody works on: an interrupted or enqueued one first, then a new one.

        Args:
            num_trials: how many trials the sweep may have in all.
            unsettled: numbers of trials that are ours until we have seen what became of their process.
        """
        claim = self._storage.transact(self._study.study_name, lambda: self._take(num_trials, unsettled))
        self._taking = None
        return claim

    def _take(self, num_trials: int, unsettled: Collection[int]) -> Claim | None:
        survey = self._survey()
        abandoned = self._abandoned(survey)
        others = (trial for trial in survey.unfinished if trial.number not in unsettled)
        trial = next((trial for trial in others if self._is_free(trial, abandoned)), None)
        if trial is not None:
            return self._take_over(trial)
        return self._begin(survey.num_trials) if survey.num_trials < num_trials else None

    def has_more(self, num_trials: int) -> bool:
        """Return whether anything is left to be claimed, now or by somebody's failing."""
        survey = self._survey()
        return survey.num_trials < num_trials or bool(survey.unfinished)

    def release(self, claim: Claim) -> None:
        """Let others take the trial: whoever worked on it is known to be gone."""
        self._storage.transact(self._study.study_name, lambda: self._release(claim))

    def _release(self, claim: Claim) -> None:
        if self.holds(claim):
            self._storage.set_trial_user_attr(claim.trial_id, keys.OWNER, None)

    def condemn(self, claim: Claim, reason: str) -> None:
        """Decide that the trial has failed, before it is asked to stop and lets go of itself."""

        def note() -> None:
            if self.holds(claim):
                self._storage.set_trial_user_attr(claim.trial_id, keys.TO_FAIL, reason)

        self._storage.transact(self._study.study_name, note)

    def fail(self, claim: Claim, notes: Mapping[str, Any]) -> bool:
        """End the trial as failed, with notes; return whether it was ours to end."""

        def end() -> bool:
            if not self.holds(claim):
                return False
            self._storage.set_trial_user_attrs(claim.trial_id, notes)
            return self._storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)

        return self._storage.transact(self._study.study_name, end)

    def holds(self, claim: Claim) -> bool:
        """Return whether the trial goes on, and the claim is its newest."""
        known = self._storage.get_standing(claim.trial_id, keys.ATTEMPT)
        return not known.state.is_finished() and bool(known.attr == claim.attempt)

    def renew(self, claim: Claim) -> None:
        """Beat for a trial that has not begun, such as a job in a queue."""
        self._storage.record_heartbeat(claim.trial_id)

    def stale(self) -> set[int]:
        """Return the trial ids of which nothing was heard for longer than the lease."""
        return {trial.trial_id for trial in self._survey().unfinished if trial.is_stale}

    def abandoned(self) -> set[int]:
        """Return the stale trials that stay silent while we listen for some beats.

        The database's clock may have been moved, or the machine been asleep: then all trials are stale, and
        the next beat of those that live tells.
        """
        return self._abandoned(self._survey())

    def _abandoned(self, survey: Survey) -> set[int]:
        now = self._now()
        stale = [trial.trial_id for trial in survey.unfinished if trial.is_stale]
        self._silent_since = {trial_id: self._silent_since.get(trial_id, now) for trial_id in stale}
        patience = BEATS_LISTENED_FOR * beat_interval(self._storage.lease_seconds)
        return {trial_id for trial_id, since in self._silent_since.items() if now - since > patience}

    def _survey(self) -> Survey:
        return self._storage.get_survey(self._study._study_id, keys.OWNER)

    def _is_free(self, trial: Standing, abandoned: set[int]) -> bool:
        if trial.state == TrialState.WAITING or trial.attr is None:
            return True
        if trial.attr == self.me and trial.number == self._taking:
            return True
        owner = Owner.from_json(trial.attr)
        if owner.is_here and owner.process() is None:
            return True
        if trial.trial_id not in abandoned:
            return False
        if owner.trains:
            end_process(owner)
        return True

    def _begin(self, number: int) -> Claim:
        self._taking = number
        attrs = {keys.ATTEMPT: 1, keys.OWNER: self.me}
        trial = self._storage.create_taken_trial(self._study._study_id, attrs)
        return Claim(trial.number, trial.trial_id, attempt=1)

    def _take_over(self, trial: Standing) -> Claim:
        self._taking = trial.number
        attempt = (self._storage.get_standing(trial.trial_id, keys.ATTEMPT).attr or 0) + 1
        self._storage.record_heartbeat(trial.trial_id)
        attrs = {keys.ATTEMPT: attempt, keys.OWNER: self.me}
        self._storage.set_trial_user_attrs(trial.trial_id, attrs)
        if trial.state == TrialState.WAITING:
            self._storage.set_trial_state_values(trial.trial_id, TrialState.RUNNING)
        to_fail = self._storage.get_standing(trial.trial_id, keys.TO_FAIL).attr
        return Claim(trial.number, trial.trial_id, attempt, to_fail)
