"""Stopping a sweep from any terminal: `harness sweep --stop` sets a user attribute of its study.

Every scheduler reads the attribute in each turn of its loop, and asks `harness.signals.StopSignals` for
Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import uuid

import optuna

from harness.search.study import keys


class StopRequest:
    """Tells a process of the sweep whether somebody ran `--stop` since this object was created."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._before = study.user_attrs.get(keys.STOP_REQUESTED)

    def is_new(self) -> bool:
        return bool(self._study.user_attrs.get(keys.STOP_REQUESTED) != self._before)


def request_stop(study: optuna.Study) -> None:
    """Ask all processes that work on the sweep to stop; their trials can be resumed."""
    study.set_user_attr(keys.STOP_REQUESTED, uuid.uuid4().hex)
