"""The interface of executors. An executor starts a process for a trial's spec, and can stop or kill it.

`local.py`, `ray.py` and `slurm.py` implement it. The scheduler calls it, and reads from the database how a
trial ended; an executor uses neither Optuna nor the sweep's budget.
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
EXIT_VANISHED = -signal.SIGKILL  # reported for a process on a cluster that left no exit code


class Placement(Protocol):
    """One trial's process, wherever it runs."""

    @property
    def is_pending(self) -> bool:
        """Whether the process has not begun yet, for instance because its job waits in a cluster's queue."""
        ...

    def exit_code(self) -> int | None:
        """Return how the process ended (negative: by that signal); None while it runs."""
        ...

    def stop(self) -> None:
        """Ask the trial to stop at the end of its batch; it can be resumed."""
        ...

    def kill(self) -> None:
        """Kill the process."""
        ...


class Executor(Protocol):
    """Starts trials, each in a process of its own."""

    def prepare(self, plan: SweepPlan) -> Slots:
        """Get ready to start trials; return how many run at a time and what each may use.

        Raises:
            ConfigError: the configuration asks for devices or nodes that do not exist.
            SweepError: the cluster does not answer.
        """
        ...

    def place(self, spec_path: Path) -> Placement:
        """Start the trial of a spec; its output goes to `trial.log` beside the spec."""
        ...

    def wait(self, placements: Sequence[Placement], timeout_s: float) -> None:
        """Wait until one of the placements has ended, at most `timeout_s`; update their states."""
        ...

    def close(self) -> None:
        """Release what `prepare` and `place` have opened; do not use the placements afterwards."""
        ...
