"""How a sweep is asked to stop from another terminal, or another machine: a note in its study."""

from __future__ import annotations

import uuid

import optuna

from harness.search.study import keys


class StopRequest:
    """What those who work on a sweep look at; a request from before they began is not for them."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._before = study.user_attrs.get(keys.STOP_REQUESTED)

    def is_new(self) -> bool:
        return bool(self._study.user_attrs.get(keys.STOP_REQUESTED) != self._before)


def request_stop(study: optuna.Study) -> None:
    """Ask everything that works on the sweep to stop resumably."""
    study.set_user_attr(keys.STOP_REQUESTED, uuid.uuid4().hex)
