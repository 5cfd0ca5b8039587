"""Compares what a run and its repetition have recorded, value by value, to the last bit.

`harness.training.commands.rerun` calls `compare_points` with the metrics of both runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.analysis.layout import wrapped

Points = Mapping[tuple[str, int], float]  # by metric and step

PER_EPOCH = ("train/", "val/")  # metrics with a value for each epoch; of others the last value counts
# Measured of the machine, not computed: never the same twice.
MEASURED = ("seconds", "per_second", "latency", "memory", "energy", "system/")
MOST_SHOWN = 20  # metrics that differ, on a terminal


@dataclass(frozen=True)
class Differing:
    """A metric that was recorded with other values."""

    metric: str
    num_differing: int
    num_values: int
    epoch: int | None  # of the first value that differs, from 1; None: it is a final value
    before: float
    now: float
    largest: float  # absolute difference


@dataclass(frozen=True)
class Repetition:
    """How the metrics of a repetition compare with those of the run that it repeats."""

    num_equal: int  # metrics all of whose values are equal
    num_values: int  # that were compared, of all metrics
    differing: tuple[Differing, ...]
    num_epochs_before: int
    num_epochs_now: int
    only_before: tuple[str, ...]  # metrics that only the first run has recorded
    only_now: tuple[str, ...]
    skipped: tuple[str, ...]  # of the test split

    @property
    def is_equal(self) -> bool:
        """Whether every value that was compared is equal, and no epoch of the first run is missing."""
        return bool(self.num_values) and not self.differing and self.num_epochs_before <= self.num_epochs_now

    def to_text(self, width: int | None = None) -> str:
        """Return the sentence, a table of what differs, and what was not compared."""
        lines = [self.sentence]
        if self.differing:
            lines += _table(self.differing[:MOST_SHOWN])
        if (more := len(self.differing) - MOST_SHOWN) > 0:
            lines.append(f"and {more} more metrics")
        return "\n".join([*lines, *wrapped(list(self.notes), width)])

    @property
    def sentence(self) -> str:
        """The answer in a line."""
        if not self.num_values:
            return "nothing was compared: the two runs have no metric in common"
        if self.differing:
            metrics = self.num_equal + len(self.differing)
            return f"{len(self.differing)} of {metrics} metrics differ:"
        epochs = min(self.num_epochs_before, self.num_epochs_now)
        values = f"{_count(self.num_values, 'value')}, {_count(epochs, 'epoch')}"
        return f"equal to the last bit in {_count(self.num_equal, 'metric')} ({values})"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not compared."""
        notes = []
        if self.num_epochs_before != self.num_epochs_now:
            notes.append(
                f"the run has {_count(self.num_epochs_before, 'epoch')}, the rerun "
                f"{self.num_epochs_now}: only those of both are compared, and no final value"
            )
        for which, names in (("the run", self.only_before), ("the rerun", self.only_now)):
            if names:
                notes.append(f"recorded by {which} alone: {_some(names)}")
        if self.skipped:
            notes.append(f"not compared, as a rerun reads no test images: {_some(self.skipped)}")
        return tuple(notes)


def compare_points(before: Points, now: Points) -> Repetition:
    """Compare the metrics of two runs.

    Metrics of the machine (times, memory, energy) are left out, and those of the test split, which are named.

    Args:
        before: of the run.
        now: of its repetition.
    """
    skipped = sorted({metric for metric, _ in before if metric.startswith("test/")})
    was, is_now = _compared(before), _compared(now)
    epochs = _num_epochs(was), _num_epochs(is_now)
    differing, num_equal, num_values = [], 0, 0
    for metric in sorted(was.keys() & is_now.keys()):
        if _has_epochs(metric):
            steps = sorted(was[metric].keys() & is_now[metric].keys())
            pairs = [(step + 1, was[metric][step], is_now[metric][step]) for step in steps]
        elif epochs[0] == epochs[1]:
            pairs = [(0, _last(was[metric]), _last(is_now[metric]))]
        else:
            continue
        num_values += len(pairs)
        others = [pair for pair in pairs if not _is_same(*pair[1:])]
        num_equal += not others
        if others:
            epoch, first, second = others[0]
            largest = max((abs(one - two) for _, one, two in others), default=math.nan)
            differing.append(
                Differing(metric, len(others), len(pairs), epoch or None, first, second, largest)
            )
    return Repetition(
        num_equal,
        num_values,
        tuple(differing),
        *epochs,
        only_before=tuple(sorted(was.keys() - is_now.keys())),
        only_now=tuple(sorted(is_now.keys() - was.keys())),
        skipped=tuple(skipped),
    )


def _compared(points: Points) -> dict[str, dict[int, float]]:
    """Return the values by metric and step, without those of the machine and of the test split."""
    found: dict[str, dict[int, float]] = {}
    for (metric, step), value in points.items():
        is_of_machine = metric.startswith("system/") or (
            "/" not in metric and any(word in metric for word in MEASURED)
        )
        if not is_of_machine and not metric.startswith("test/"):
            found.setdefault(metric, {})[step] = value
    return found


def _num_epochs(values: Mapping[str, Mapping[int, float]]) -> int:
    return len(values.get("train/loss", ()))


def _has_epochs(metric: str) -> bool:
    return metric.startswith(PER_EPOCH) or metric in ("lr", "epoch")


def _last(values: Mapping[int, float]) -> float:
    return values[max(values)]


def _is_same(one: float, two: float) -> bool:
    return one == two or (math.isnan(one) and math.isnan(two))


def _table(rows: tuple[Differing, ...]) -> list[str]:
    head = ["metric", "values that differ", "first", "before", "now", "largest difference"]
    cells = [
        [
            row.metric,
            f"{row.num_differing} of {row.num_values}",
            f"epoch {row.epoch}" if row.epoch else "final",
            repr(row.before),
            repr(row.now),
            f"{row.largest:.3g}",
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *cells]
    ]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _some(names: tuple[str, ...], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
