"""Who places trials: an executor starts `python -m harness.search.trial SPEC` somewhere, and no more.

An executor knows nothing of Optuna or of budgets; what became of a trial stands in the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Placement(Protocol):
    """One trial's process, wherever it runs."""

    @property
    def is_pending(self) -> bool:
        """Return whether it still waits in a queue: nobody can expect a sign of life from it."""
        ...

    def exit_code(self) -> int | None:
        """Return how the process ended (negative: by that signal); None while it runs."""
        ...

    def stop(self) -> None:
        """Ask it to stop at the end of the batch; the trial stays resumable."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class Executor(Protocol):
    """A place for trials."""

    def prepare(self) -> None:
        """Begin whatever makes the first placement fast; returns without waiting for it."""
        ...

    def place(self, spec_path: Path) -> Placement:
        """Start the trial of a spec; its output goes to `trial.log` beside the spec."""
        ...

    def wait(self, placements: Sequence[Placement], timeout_s: float) -> None:
        """Return when one of the placements ends, or after the time."""
        ...
