"""`Tracker`: the interface through which training records one run.

`harness.tracking.mlflow_tracker` implements it for MLflow; `SilentTracker`, below, records nothing.
`harness/training/record.py` and `callbacks.py` write to a tracker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
MAX_VALUE_LENGTH = 6000  # characters; MLflow refuses longer parameters


class Tracker(Protocol):
    """The record of one run.

    Every implementation keeps this contract (``tests/contracts/test_tracker_contract.py``):

    - No method raises because the store cannot be reached. A write that fails now is repeated later.
    - A resumed run may repeat every call that it ever made. Parameters keep their first value, and a
      (metric, epoch) point keeps its first number.
    - A process calls ``finish`` once, and nothing after it.
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

    def log_summary(self, metrics: Mapping[str, float], *, replaces: bool = False) -> None:
        """Record the final metrics of the run; lists of runs show these values.

        Args:
            replaces: a value that differs from the recorded one takes its place in the lists, as a later
                point of its curve: it is of another model (a sweep's new best trial, on the test split).
            metrics: NaN withdraws a value that an earlier model had and this one has not; it is recorded only
                where there is such a value.
        """
        ...

    def set_tags(self, tags: Mapping[str, str | None]) -> None:
        """Set tags; unlike parameters, they may change. None removes one."""
        ...

    def log_text(self, text: str, name: str) -> None:
        """Record a text as the artifact `name` (``config.yaml``)."""
        ...

    def log_dict(self, content: Mapping[str, Any], name: str) -> None:
        """Record plain JSON types as the artifact `name` (``val/confusion.json``)."""
        ...

    def log_bytes(self, content: bytes, name: str) -> None:
        """Record a file's content as the artifact `name` (``predictions/val.npz``)."""
        ...

    def log_figure(self, figure: Figure, name: str) -> None:
        """Record a picture as the artifact `name` (``val/confusion.png``)."""
        ...

    def log_image(self, image: np.ndarray, key: str, step: int) -> None:
        """Record an image of a series, which MLflow's image grid shows with a slider over its steps.

        A (key, step) that is recorded already is left alone.

        Args:
            image: uint8 (H, W, 3).
            key: the name of the series: letters, digits, and ``_-./`` or spaces.
            step: an epoch.
        """
        ...

    def log_data(
        self, *, name: str, digest: str, source: str, num_rows: int, class_names: Sequence[str], context: str
    ) -> None:
        """Record which images the run used.

        Args:
            digest: SHA-256 over pixels, labels and split, in hexadecimal.
            source: where the images came from: a folder or an address.
            num_rows: how many images.
            context: ``training``, ``validation`` or ``test``.
        """
        ...

    def log_model(
        self,
        checkpoint_path: Path,
        *,
        input_example: np.ndarray,
        class_names: Sequence[str],
        metrics: Mapping[str, float],
    ) -> None:
        """Record a checkpoint as a model that MLflow can load and score without this package installed.

        Args:
            input_example: uint8, (N, H, W, 3) or (N, 3, H, W); a few images are enough.
            metrics: the model's; they also become the run's final metrics, as by `log_summary`.
        """
        ...

    def finish(self, status: RunStatus) -> None:
        """Close the run with this status."""
        ...


class SilentTracker:
    """A tracker that records nothing, for the ranks above 0: when several train one model, rank 0 records."""

    run_id = ""

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    log_params = log_epoch = log_summary = set_tags = log_text = log_dict = log_bytes = _nothing
    log_figure = log_image = log_data = log_model = finish = _nothing


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return ``{"optim.lr": "0.001"}``, each value as it would be typed on the command line."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = _as_text(value)
    return flat


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 1] + "…"
