"""Stopping a sweep from anywhere: `harness sweep --stop` writes a note in its study.

The scheduler looks for the note between its ticks, and at the signals of its own terminal
(`harness.signals.StopSignals`).
"""

from __future__ import annotations

import uuid

import optuna

from harness.search.study import keys


class StopRequest:
    """Tells one process of the sweep whether `--stop` was called since that process began."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._before = study.user_attrs.get(keys.STOP_REQUESTED)

    def is_new(self) -> bool:
        return bool(self._study.user_attrs.get(keys.STOP_REQUESTED) != self._before)


def request_stop(study: optuna.Study) -> None:
    """Ask all processes that work on the sweep to stop; their trials can be resumed."""
    study.set_user_attr(keys.STOP_REQUESTED, uuid.uuid4().hex)
