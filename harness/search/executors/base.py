"""Who places trials: an executor starts `python -m harness.search.trial SPEC` somewhere, and no more.

An executor knows nothing of Optuna or of budgets; what became of a trial stands in the database.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from harness.config.compose import SweepPlan
    from harness.search.coordinator.slots import Slots

LOG = "trial.log"
TRIAL_MODULE = "harness.search.trial"
EXIT_VANISHED = -signal.SIGKILL  # a cluster's answer for a process that is gone and left no exit code


class Placement(Protocol):
    """One trial's process, wherever it runs."""

    @property
    def is_pending(self) -> bool:
        """Whether it still waits for a place, as on a cluster that is full; then nothing has run yet."""
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

    def prepare(self, plan: SweepPlan) -> Slots:
        """Begin whatever makes the first placement fast; return how many trials fit, and what each may use.

        Raises:
            ConfigError: the configuration asks for what is not there.
            SweepError: a cluster that does not answer.
        """
        ...

    def place(self, spec_path: Path) -> Placement:
        """Start the trial of a spec; its output goes to `trial.log` beside the spec."""
        ...

    def wait(self, placements: Sequence[Placement], timeout_s: float) -> None:
        """Return when one of the placements ends, or after the time; what they say is as of then."""
        ...

    def close(self) -> None:
        """Let go of what was begun; placements are lost."""
        ...
