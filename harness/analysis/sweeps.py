"""`harness compare --sweeps A B`: whole sweeps side by side, at the budget of the smallest.

`compare_sweeps` is the entry; `best_of.py` has the statistics, `page.py` the HTML page.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.analysis.best_of import SweepCurve
from harness.analysis.compare import check_same_validation
from harness.analysis.layout import markdown_table, wrapped, write_files
from harness.analysis.table import render_table
from harness.config.schema import TrackingConfig
from harness.errors import TrackingError
from harness.tracking.choice import COMPLETE, ORDER, RecordedSweep, find_sweep, read_sweep

TRIED = (*COMPLETE, "pruned", "infeasible", "failed")  # a trial that ended so was a try
MEANING = (
    "expected best: of that many of the sweep's trials in any order, as if they were independent draws; a "
    "sampler that learns finds its best late, so its curve is cautious. A pruned trial counts with its last "
    "score, one without a score as the worst. One sweep is one draw: another seed would give another curve"
)


@dataclass(frozen=True)
class SweepsComparison:
    """Several sweeps of one objective; the one expected to find the best in equal trials comes first."""

    metric: str
    curves: tuple[SweepCurve, ...]

    @property
    def num_trials(self) -> int:
        """The tries of the smallest sweep: the budget at which all are compared."""
        return min(len(curve.scores) for curve in self.curves)

    @property
    def minutes(self) -> float:
        """The minutes of training of the cheapest sweep."""
        return min(curve.minutes for curve in self.curves)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return head and rows."""
        head = ["sweep", "trials", "ended", "best", "minutes", f"expected best of {self.num_trials}"]
        head += ["95 % interval (median)", f"expected best in {self.minutes:.1f} min"]
        rows = []
        for curve in self.curves:
            low, high = curve.interval(self.num_trials)
            fitting = curve.trials_in(self.minutes)
            ended = ", ".join(f"{count} {outcome}" for outcome, count in curve.outcomes.items())
            rows.append(
                [
                    f"{curve.name} (still running)" if curve.is_running else curve.name,
                    str(len(curve.scores)),
                    ended,
                    f"{curve.best:.4f}",
                    f"{curve.minutes:.1f}",
                    f"{curve.expected[self.num_trials - 1]:.4f}",
                    f"{_limit(low)} to {_limit(high)}",
                    f"{curve.expected[fitting - 1]:.4f} ({fitting} trials)",
                ]
            )
        return head, rows

    def sentences(self) -> list[str]:
        """Return how the first sweep compares with each of the others, and how to read it."""
        first, *others = self.curves
        return [*(self._sentence(first, other) for other in others), MEANING]

    def to_text(self, width: int | None = None) -> str:
        """Return what people read: a column for each sweep, and the sentences."""
        head, rows = self.table()
        titles, *facts = [list(cells) for cells in zip(head, *rows, strict=True)]
        lines = render_table(titles, facts, [False, *(True for _ in rows)], width)
        return "\n".join([f"{self.metric} of {len(rows)} sweeps", *lines, *wrapped(self.sentences(), width)])

    def to_markdown(self) -> str:
        return "\n".join([markdown_table(*self.table()), *(f"- {line}" for line in self.sentences())]) + "\n"

    def to_csv(self) -> str:
        """Return every point of every curve."""
        output = io.StringIO()
        writer = csv.writer(output, lineterminator="\n")
        writer.writerow(["sweep", "trials", "minutes", "expected_best", "median_low", "median_high"])
        for curve in self.curves:
            for number, value in enumerate(curve.expected, start=1):
                minutes = number * curve.minutes_per_trial
                writer.writerow([curve.name, number, minutes, value, *curve.interval(number)])
        return output.getvalue()

    def write(self, output_dir: Path) -> tuple[Path, ...]:
        """Write `sweeps.csv`, `sweeps.md` and `sweeps.html`; return their paths.

        Raises:
            TrackingError: the folder cannot be written.
        """
        files = {"sweeps.csv": self.to_csv(), "sweeps.md": self.to_markdown(), "sweeps.html": self.to_html()}
        return write_files(output_dir, files)

    def to_html(self) -> str:
        """Return a page that opens without a network."""
        from harness.analysis.charts import best_of_chart
        from harness.analysis.page import Part, render_page

        first, *others = self.sentences()
        dotted = (
            "Dotted: the 95 % interval for the median of the best score. Where a line is missing, these "
            "trials are too few to set that limit."
        )
        average = (
            "Each sweep's trials at their average length, those that ran side by side one after another."
        )
        return render_page(
            "Comparison of sweeps",
            first,
            [
                Part("Sweeps", others, *self.table()),
                Part(
                    "Expected best score by the number of trials",
                    [dotted],
                    figure=best_of_chart(self.metric, self.curves, self.num_trials, by_minutes=False),
                ),
                Part(
                    "Expected best score by minutes of training",
                    [average],
                    figure=best_of_chart(self.metric, self.curves, self.minutes, by_minutes=True),
                ),
            ],
        )

    def _sentence(self, first: SweepCurve, other: SweepCurve) -> str:
        count = self.num_trials
        lead = abs(first.expected[count - 1] - other.expected[count - 1])
        by = f"of {count} trials each, {first.name} is expected to find a {self.metric} better by {lead:.4f}"
        worst_first, best_other = (
            first.interval(count)[first.minimizes],
            other.interval(count)[not first.minimizes],
        )
        if worst_first is None or best_other is None:
            return f"{by} than {other.name}; so few trials set no limit to what {other.name} may find"
        is_apart = worst_first < best_other if first.minimizes else worst_first > best_other
        found = (
            "the intervals do not overlap"
            if is_apart
            else "the intervals overlap: this does not tell them apart"
        )
        return f"{by} than {other.name}; {found}"


def compare_sweeps(tracking: TrackingConfig, references: Sequence[str]) -> SweepsComparison:
    """Compare recorded sweeps.

    Args:
        references: names or run ids of at least two sweeps.

    Raises:
        TrackingError: there is no such sweep, one is named twice or has no score, or they cannot be compared:
            their objectives or their validation images differ.
    """
    sweeps = [read_sweep(tracking, find_sweep(tracking, reference)) for reference in references]
    if len({sweep.parent.run_id for sweep in sweeps}) < max(2, len(sweeps)):
        raise TrackingError("--sweeps compares at least two sweeps, each named once: --sweeps A B")
    objectives = {(sweep.metric, sweep.minimizes) for sweep in sweeps}
    if len(objectives) > 1:
        shown = ", ".join(
            f"{'lowest' if minimizes else 'highest'} {metric}" for metric, minimizes in objectives
        )
        raise TrackingError(
            f"the sweeps have different objectives ({shown}), so their scores cannot be compared"
        )
    check_same_validation([trial for sweep in sweeps for trial in sweep.searched])
    names = [sweep.name for sweep in sweeps]
    curves = [
        _curve(
            sweep, sweep.name if names.count(sweep.name) == 1 else f"{sweep.name} ({sweep.parent.run_id[:8]})"
        )
        for sweep in sweeps
    ]
    budget = min(len(curve.scores) for curve in curves)
    (metric, minimizes) = objectives.pop()
    sign = 1 if minimizes else -1
    return SweepsComparison(
        metric, tuple(sorted(curves, key=lambda curve: sign * curve.expected[budget - 1]))
    )


def _curve(sweep: RecordedSweep, name: str) -> SweepCurve:
    tried = [trial for trial in sweep.searched if trial.outcome in TRIED]  # replicates search nothing
    scores = [sweep.score(trial) for trial in tried]
    known = [score for score in scores if score is not None and np.isfinite(score)]
    if not known:
        raise TrackingError(f"sweep {name} has no trial with a score: let it run on, or leave it out")
    worst = max(known) if sweep.minimizes else min(known)
    outcomes = Counter(trial.outcome for trial in tried)
    return SweepCurve(
        name=name,
        minimizes=sweep.minimizes,
        outcomes={outcome: outcomes[outcome] for outcome in ORDER if outcomes[outcome]},
        scores=tuple(worst if score is None or not np.isfinite(score) else score for score in scores),
        minutes=sum(trial.minutes or 0.0 for trial in tried),
        is_running=sweep.parent.status == "RUNNING",
    )


def _limit(value: float | None) -> str:
    return "no limit" if value is None else f"{value:.4f}"
