"""The metric that decides about a run: which epoch is kept, when to stop early, a trial's score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import model_validator

from harness.config.base import Section

# Every metric that is computed on the validation split after an epoch. f1, auc, precision and recall are
# means over the classes.
MetricOfClasses = Literal["val/accuracy", "val/loss", "val/f1", "val/auc", "val/precision", "val/recall"]
# The same of multi-label images; mAP is the mean over the labels of the average precision.
MetricOfLabels = Literal[
    "val/mAP",
    "val/loss",
    "val/f1",
    "val/micro_f1",
    "val/exact_match",
    "val/auc",
    "val/precision",
    "val/recall",
]
Metric = Literal[MetricOfClasses, MetricOfLabels]
Direction = Literal["maximize", "minimize"]
METRICS_OF_CLASSES: tuple[str, ...] = get_args(MetricOfClasses)
METRICS_OF_LABELS: tuple[str, ...] = get_args(MetricOfLabels)
METRICS: tuple[str, ...] = get_args(Metric)


def direction_of(metric: str) -> Direction:
    """Return whether a metric is to be maximised or minimised."""
    return "minimize" if metric == "val/loss" else "maximize"


class Judged(Section):
    """A section with a metric; the direction follows from the metric and need not be given."""

    metric: Metric = "val/accuracy"
    direction: Direction = "maximize"

    @model_validator(mode="before")
    @classmethod
    def _direction_follows(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = {key: value for key, value in values.items() if (key, value) != ("metric", None)}
        metric, given = values.get("metric", "val/accuracy"), values.get("direction")
        if metric not in METRICS or given not in (None, *get_args(Direction)):
            return values  # the fields' own validation reports it
        if given not in (None, direction_of(metric)):
            raise ValueError(
                f"direction={given} does not suit metric={metric}: leave it out, it is {direction_of(metric)}"
            )
        return {**values, "direction": direction_of(metric)}


class MonitorConfig(Judged):
    """`trainer.monitor`."""

    def best(self, scores: Sequence[float]) -> int:
        """Return the position of the best score, of equals the first."""
        sign = -1.0 if self.direction == "minimize" else 1.0
        return max(range(len(scores)), key=lambda position: sign * scores[position])


BY_ACCURACY = MonitorConfig()
