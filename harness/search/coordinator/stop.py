"""How a sweep is asked to stop: by signals of its terminal, or by a note in its study from anywhere else.

The scheduler looks at both between its ticks. `harness sweep --stop` writes the note.
"""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import optuna

from harness.search.study import keys


class StopSignals:
    """Counts SIGINT and SIGTERM while it is entered, instead of raising from wherever the program is."""

    def __init__(self) -> None:
        self.count = 0
        self.first: int | None = None
        self._before: dict[int, Any] = {}
        self._raises = False

    @property
    def exit_code(self) -> int:
        """Return the code by which shells name the first signal, 0 if there was none."""
        return 0 if self.first is None else 128 + self.first

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or number
        if self._raises:
            raise KeyboardInterrupt

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at a signal within, or for one from before: nobody looks at the count."""
        self._raises = True
        try:
            if self.count:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False


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
