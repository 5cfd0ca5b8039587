"""What the audit of a sweep hands on: findings, and the commands that would settle them.

`edges.py`, `arms.py` and `effects.py` make findings, `audit.py` collects them.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.config.compose import SweepPlan
from harness.config.overrides import path_of
from harness.files import slug
from harness.search.study.trials import TrialRow

Kind = Literal["edge", "unequal", "few_trials", "pruned_early", "no_score", "no_difference", "cannot_tell"]


@dataclass(frozen=True)
class Finding:
    """Something that limits what the sweep's answer says.

    Args:
        sentence: in plain words.
        command: the shell command that would settle it; None where no command can.
    """

    kind: Kind
    sentence: str
    command: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class EndedSweep:
    """A sweep that has ended or stopped, as the checks below see it."""

    rows: Sequence[TrialRow]  # of the search, without replicates
    best: TrialRow | None
    plan: SweepPlan
    name: str
    command: str
    tied: frozenset[int]
    num_train: int | None

    def altered(self, changes: Mapping[str, str], *options: str) -> str:
        """Return the sweep's command with other overrides in place of those for the same keys."""
        words = shlex.split(self.command)
        # An SQLite file follows from the folder of runs; `harness replicate` names it nevertheless.
        implied = "sweep.storage=sqlite:"
        words = [word for word in words if not word.startswith(implied)]
        kept = [word for word in words if "=" not in word or path_of(word) not in changes]
        return shlex.join([*kept, *options, *(f"{path}={value}" for path, value in changes.items())])

    def with_more_trials(self, count: int, changes: Mapping[str, str], *options: str) -> str:
        """Return the command that gives this sweep more trials; nothing may stop it before them."""
        sweep = self.plan.sweep
        unbounded = {
            f"sweep.{key}": "null" for key in ("target", "patience_trials") if getattr(sweep, key) is not None
        }
        budget = max(sweep.num_trials, len(self.rows)) + count
        settings = {"sweep.name": self.name, "sweep.num_trials": str(budget), **unbounded}
        return self.altered({**settings, **changes}, *options)

    def other(self, suffix: str, changes: Mapping[str, str]) -> str:
        """Return the command of another sweep beside this one."""
        return self.altered({"sweep.name": f"{self.name}-{slug(suffix)}", **changes})

    @property
    def some_more(self) -> int:
        """Half as many trials again, at least four."""
        return max(4, math.ceil(self.plan.sweep.num_trials / 2))
