"""Shows a running sweep: a live table on a terminal, one line per event elsewhere.

`sweep.py`, `worker.py` and `coordinator/follow.py` build a `Progress` and update it after each look at the
database.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.config.sweep import SweepConfig
from harness.search.coordinator.completion import num_wanted
from harness.search.study.trials import TrialRow, best_row

REFRESHES_PER_SECOND = 2


@dataclass(frozen=True)
class SweepView:
    """The state of a sweep at one moment, as it is shown."""

    rows: Sequence[TrialRow]
    best: TrialRow | None
    num_trials: int
    num_ended: int
    elapsed_s: float  # since this command began
    left_s: float | None  # estimated; None until a trial has ended

    @property
    def running(self) -> list[TrialRow]:
        return [row for row in self.rows if row.state == "running"]


class Progress(Protocol):
    """Shows the state of a sweep each time `update` is called; a context manager around the sweep."""

    def update(self, view: SweepView) -> None: ...
    def __enter__(self) -> Progress: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def build_progress(console: Console, metric: str) -> Progress:
    """Return the live table for a terminal, plain lines for anything else."""
    return LiveProgress(console, metric) if console.is_terminal else PlainProgress(console, metric)


def view_of(rows: Sequence[TrialRow], sweep: SweepConfig, started: float, slots: int) -> SweepView:
    """Return the sweep's state by these rows; `started` is when the command began, by `time.monotonic`."""
    num_ended, num_trials = sum(row.has_ended for row in rows), num_wanted(rows, sweep)
    return SweepView(
        rows=rows,
        best=best_row(rows, sweep.direction),
        num_trials=num_trials,
        num_ended=num_ended,
        elapsed_s=time.monotonic() - started,
        left_s=seconds_left(rows, num_trials, slots),
    )


def seconds_left(rows: Sequence[TrialRow], num_trials: int, slots: int) -> float | None:
    """Estimate the time to the end of the budget from the mean time of the trials that have ended."""
    times = [row.seconds for row in rows if row.has_ended and row.seconds]
    if not times:
        return None
    not_ended = num_trials - sum(row.has_ended for row in rows)
    done = sum(row.epochs_done / row.max_epochs for row in rows if row.state == "running" and row.max_epochs)
    return max(not_ended - done, 0.0) * sum(times) / len(times) / max(1, min(slots, not_ended or 1))


class PlainProgress:
    """One line per event: started, each epoch, ended."""

    def __init__(self, console: Console, metric: str) -> None:
        self._console = console
        self._metric = metric
        self._before: dict[int, TrialRow] | None = None

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, view: SweepView) -> None:
        if self._before is None:
            self._before = {row.number: row for row in view.rows}  # earlier events are not shown
        for row in view.rows:
            for event in self._events(row, self._before.get(row.number)):
                self._console.print(event, highlight=False, markup=False, soft_wrap=True)
            if row.has_ended and not self._had_ended(row.number):
                self._console.print(self._summary(view), highlight=False, markup=False, soft_wrap=True)
            self._before[row.number] = row

    def _had_ended(self, number: int) -> bool:
        before = (self._before or {}).get(number)
        return before is not None and before.has_ended

    def _events(self, row: TrialRow, before: TrialRow | None) -> list[str]:
        name, events = f"trial {row.number}", []
        if row.params and (before is None or not before.params):
            again = (
                "" if row.replicate_of is None else f"trial {row.replicate_of} again with seed {row.seed}: "
            )
            events.append(f"{name} started: {again}{short_params(row.params)}")
        if row.epochs_done > (before.epochs_done if before else 0):
            epoch = f"{row.epochs_done}/{row.max_epochs or '?'}"
            events.append(f"{name} epoch {epoch}: {self._metric} {format_score(row.last_score)}")
        if row.has_ended and (before is None or not before.has_ended):
            why = f" ({row.reason})" if row.reason else ""
            events.append(f"{name} {row.state}: {self._metric} {format_score(row.score)}{why}")
        return events

    def _summary(self, view: SweepView) -> str:
        best = (
            f"best {format_score(view.best.score)} (trial {view.best.number})" if view.best else "no best yet"
        )
        return f"{_counts(view)} trials ended, {best}, {_times(view)}"


class LiveProgress:
    """A table of the running trials that redraws itself."""

    def __init__(self, console: Console, metric: str) -> None:
        self._metric = metric
        self._live = Live(console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True)

    def __enter__(self) -> LiveProgress:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def update(self, view: SweepView) -> None:
        self._live.update(self.render(view))

    def render(self, view: SweepView) -> Group:
        """Return the running trials, the best so far, and the time left."""
        table = Table(expand=True, box=None, header_style="dim")
        for title in ("trial", "parameters", "epoch", "", self._metric):
            table.add_column(title, ratio=3 if title == "parameters" else None, no_wrap=title != "parameters")
        for row in view.running:
            table.add_row(
                str(row.number),
                short_params(row.params) or "starting …",
                f"{row.epochs_done}/{row.max_epochs or '?'}",
                ProgressBar(total=row.max_epochs or 1, completed=row.epochs_done, width=16),
                format_score(row.last_score),
            )
        return Group(table, self._best(view), Text(f"{_counts(view)} trials ended · {_times(view)}"))

    def _best(self, view: SweepView) -> Text:
        if view.best is None:
            return Text("no trial is complete yet", style="dim")
        params = short_params(view.best.params)
        score = f"{self._metric} {format_score(view.best.score)}"
        return Text(f"best so far: {score} · trial {view.best.number} · {params}", style="bold green")


def short_params(params: dict[str, Any]) -> str:
    """Return parameters in one line, each named by the last part of its dotted path."""
    return " ".join(f"{path.rpartition('.')[2]}={format_value(value)}" for path, value in params.items())


def format_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_score(score: float | None) -> str:
    return "–" if score is None else f"{score:.4f}"


def format_seconds(seconds: float) -> str:
    """Return a duration in words: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _counts(view: SweepView) -> str:
    failed = sum(row.state == "failed" for row in view.rows)
    return f"{view.num_ended}/{view.num_trials}" + (f" ({failed} failed)" if failed else "")


def _times(view: SweepView) -> str:
    left = f", about {format_seconds(view.left_s)} left" if view.left_s else ""
    return f"{format_seconds(view.elapsed_s)} elapsed{left}"
