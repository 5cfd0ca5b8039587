"""What a trial's process writes to goes through here: nothing, once the trial is somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

from harness.search.ownership.lease import Lease

if TYPE_CHECKING:
    from harness.tracking import Tracker


class _Fenced:
    """A tracker whose process leaves, before it writes, if it has slept and lost its trial meanwhile."""

    def __init__(self, tracker: Tracker, lease: Lease) -> None:
        self._tracker = tracker
        self._lease = lease

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tracker, name)
        return self._guarded(found) if callable(found) else found

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._lease.check_after_sleep()
            return method(*args, **kwargs)

        return call


def fenced(tracker: Tracker, lease: Lease) -> Tracker:
    """Return the tracker for as long as the lease is ours."""
    return cast("Tracker", _Fenced(tracker, lease))
