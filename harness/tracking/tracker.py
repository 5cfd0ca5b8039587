"""What training asks of the place where a run is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """One run's record.

    The contract, which every implementation keeps (``tests/contracts/test_tracker_contract.py``):

    - no method raises because the store is away: what cannot be recorded now is recorded later;
    - what is recorded is never recorded twice: a resumed run may repeat every call it ever made, and
      parameters keep their first value, a (metric, epoch) point its first number;
    - after ``finish`` nothing else is called, and it is called once per process.
    """

    @property
    def run_id(self) -> str:
        """The store's id of the run, the same after a resume."""
        ...

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Record a nested configuration as flat dotted parameters (``optim.lr``)."""
        ...

    def log_epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one epoch's metrics together; an epoch that is already recorded is left alone."""
        ...

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Record what the finished run is worth; these become the values that lists of runs show."""
        ...

    def set_tags(self, tags: Mapping[str, str | None]) -> None:
        """Set tags; unlike parameters, they may change. None removes one."""
        ...

    def log_text(self, text: str, name: str) -> None:
        """Keep a text as the artifact `name` (``config.yaml``)."""
        ...

    def log_dict(self, content: Mapping[str, Any], name: str) -> None:
        """Keep plain JSON types as the artifact `name` (``confusion/val.json``)."""
        ...

    def log_figure(self, figure: Figure, name: str) -> None:
        """Keep a picture as the artifact `name` (``confusion/val.png``)."""
        ...

    def log_data(
        self, *, name: str, digest: str, source: str, num_rows: int, class_names: Sequence[str], context: str
    ) -> None:
        """Record which images the run saw (`context`: ``training``, ``validation`` or ``test``)."""
        ...

    def log_model(
        self,
        checkpoint_path: Path,
        *,
        input_example: np.ndarray,
        class_names: Sequence[str],
        metrics: Mapping[str, float],
    ) -> None:
        """Keep a checkpoint as a model that can be loaded and scored without this program's help.

        Args:
            input_example: uint8, (N, H, W, 3) or (N, 3, H, W); a few images are enough.
        """
        ...

    def finish(self, status: RunStatus) -> None:
        """Close the run with what truly became of it."""
        ...
