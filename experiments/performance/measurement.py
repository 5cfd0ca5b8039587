"""`Row`: one line of the benchmark's table; `Result`: the same, measured; and the statistics for both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from experiments.performance.place import Place

Verdict = Literal["met", "falls short", "skipped", "failed"]


class Skip(Exception):  # noqa: N818 - an answer, not an error
    """A row that cannot be measured here and now; the message says why."""


@dataclass(frozen=True)
class Side:
    """One of the two things that a row compares."""

    name: str
    values: tuple[float, ...]  # one per repeat, in order
    unit: str


@dataclass(frozen=True)
class Outcome:
    """The values that measuring a row has given."""

    values: tuple[float, ...]  # of the quantity that has the target, one per repeat
    sides: tuple[Side, ...] = ()
    note: str = ""  # what a reader must know to judge the number
    table: tuple[tuple[str, ...], ...] = ()  # of a report, its headings first; empty: none


@dataclass(frozen=True)
class Row:
    """One line of the table: a question, its target, and how it is measured.

    Args:
        measure: raises :class:`Skip` if the row cannot be measured here.
        unit: "×" for ratios.
        at_least: True if the value must reach the target, False if it must not exceed it.
        budget_s: about how many seconds the measurement takes on two otherwise idle cores.
    """

    key: str
    title: str
    target: float
    measure: Callable[[Place], Outcome]
    budget_s: int
    unit: str = "×"
    at_least: bool = True
    middle: Callable[[Sequence[float]], float] = statistics.median


@dataclass(frozen=True)
class Result:
    """A measured row, as written to results.json."""

    key: str
    title: str
    target: float
    unit: str
    at_least: bool
    verdict: Verdict
    value: float | None = None  # the middle of the repeats
    low: float | None = None  # smallest and ...
    high: float | None = None  # ... largest of the repeats
    repeats: int = 0
    sides: tuple[Side, ...] = ()
    note: str = ""
    table: tuple[tuple[str, ...], ...] = ()  # see `Outcome`
    seconds: float = field(default=0.0, compare=False)  # that measuring took

    def share(self, value: float) -> float:
        """Return how many times as good as the target a value is: with 1, the target is just met."""
        return value / self.target if self.at_least else self.target / max(value, 1e-12)


def alternate(
    repeats: int, first: Callable[[], float], second: Callable[[], float]
) -> list[tuple[float, float]]:
    """Measure two things in turn, A B A B A B, so that a machine that slows down slows both."""
    return [(first(), second()) for _ in range(repeats)]


def compare(
    pairs: Sequence[tuple[float, float]],
    names: tuple[str, str],
    unit: str,
    *,
    less_is_better: bool = False,
    note: str = "",
) -> Outcome:
    """Return how many times better the first of each pair is than the second, as one ratio per pair."""
    ratios = [second / first if less_is_better else first / second for first, second in pairs]
    columns = zip(*pairs, strict=True)
    sides = [Side(name, tuple(values), unit) for name, values in zip(names, columns, strict=True)]
    return Outcome(tuple(ratios), tuple(sides), note)


def judge(row: Row, outcome: Outcome, seconds: float) -> Result:
    """Return the row's value with its spread, and whether that meets the target."""
    value = row.middle(outcome.values)
    is_met = value >= row.target if row.at_least else value <= row.target
    return Result(
        key=row.key,
        title=row.title,
        target=row.target,
        unit=row.unit,
        at_least=row.at_least,
        verdict="met" if is_met else "falls short",
        value=value,
        low=min(outcome.values),
        high=max(outcome.values),
        repeats=len(outcome.values),
        sides=outcome.sides,
        note=outcome.note,
        table=outcome.table,
        seconds=seconds,
    )


def without_number(row: Row, verdict: Verdict, reason: str, seconds: float = 0.0) -> Result:
    """Return a row that has no number, and why."""
    return Result(
        row.key, row.title, row.target, row.unit, row.at_least, verdict, note=reason, seconds=seconds
    )


# ── what is scaled up ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Epoch:
    """One epoch of a trial."""

    train_s: float
    val_s: float


@dataclass(frozen=True)
class Timing:
    """How long a trial took, or several at the same time, with the epochs of the one that took longest."""

    total_s: float
    epochs: tuple[Epoch, ...]

    def scaled(self, train: float, val: float, epochs: int) -> float:
        """Return the seconds that it would take with more images and epochs.

        Every epoch is taken to be as long as the last one. All other time is not scaled: that outside of
        epochs, and what earlier epochs took longer, as the first starts workers and fills caches.

        Args:
            train: how many times more training images.
            val: how many times more validation images.
        """
        last = self.epochs[-1]
        around = self.total_s - len(self.epochs) * (last.train_s + last.val_s)
        return max(around, 0.0) + epochs * (train * last.train_s + val * last.val_s)
