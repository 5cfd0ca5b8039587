"""The audit of a sweep: what a reader could object to in its answer, each with a command that settles it.

`parent_run.py` calls `audit` at a sweep's end. It finds a winner at the edge of its range (`edges.py`), arms
that were treated worse than others (`arms.py`), and settings that made no difference (`effects.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from harness.config.compose import SweepPlan
from harness.config.overrides import as_override_value
from harness.errors import first_few
from harness.search.report.arms import find_unequal_arms
from harness.search.report.edges import find_edges
from harness.search.report.effects import Effect, judge_effects, trials_needed
from harness.search.report.findings import EndedSweep, Finding
from harness.search.study.trials import TrialRow, best_row, searched

INDEPENDENT = ("random", "qmc", "grid")  # samplers whose trials do not depend on earlier scores
MOST_TIMES = 4  # so many times a sweep's trials may be asked for, to tell what could not be told


def audit(
    rows: Sequence[TrialRow],
    plan: SweepPlan,
    name: str,
    command: str,
    tied: frozenset[int] = frozenset(),
    num_train: int | None = None,
) -> list[Finding]:
    """Return what limits the sweep's answer, the weightiest first; empty where no trial has ended.

    Args:
        name: the sweep's.
        command: the shell command that continues the sweep.
        tied: numbers of the trials that are within noise of the best.
        num_train: how many training images there are; None: not known.
    """
    if not any(row.has_ended for row in rows):
        return []
    best = best_row(rows, plan.sweep.direction)
    sweep = EndedSweep(searched(rows), best, plan, name, command, tied, num_train)
    return [*find_edges(sweep), *find_unequal_arms(sweep), *_effects(sweep)]


def _effects(sweep: EndedSweep) -> Iterator[Finding]:
    """Find settings without effect; those of which nothing can be said share one finding."""
    effects = judge_effects(sweep.rows, sweep.plan.sweep)
    best = sweep.best
    for effect in (one for one in effects if one.verdict == "none" and best is not None):
        assert best is not None
        value = best.params.get(effect.path)
        command = (
            sweep.other("narrower", {effect.path: as_override_value(value)})
            if effect.path in best.params
            else None
        )
        low, high = effect.interval
        yield Finding(
            "no_difference",
            f"{effect.path} made no difference in {effect.num_trials} trials: of two trials with different "
            f"values, either is the better one with a chance of {100 * low:.0f} to {100 * high:.0f} % "
            f"(95 % interval{_caution(sweep.plan)}); it could be fixed",
            command,
        )
    unknown = [effect for effect in effects if effect.verdict == "unknown"]
    if unknown:
        yield _cannot_tell(sweep, unknown)


def _caution(plan: SweepPlan) -> str:
    """Return what to bear in mind of an interval over trials that were not drawn independently."""
    sampler = plan.sweep.sampler.kind
    return (
        "" if sampler in INDEPENDENT else f", as if trials were independent draws: those of {sampler} are not"
    )


def _cannot_tell(sweep: EndedSweep, unknown: Sequence[Effect]) -> Finding:
    num_complete = sum(row.state == "complete" for row in sweep.rows)
    ended = sum(row.has_ended for row in sweep.rows)
    paths = [effect.path for effect in unknown]
    shown = first_few(paths, 4)
    wanted = [
        needed * ended / max(effect.num_trials, 1)
        for effect in unknown
        if (needed := trials_needed(effect.num_groups)) is not None
    ]
    about = math.ceil(max(wanted, default=0) / 10) * 10
    budget = max(sweep.plan.sweep.num_trials, len(sweep.rows))
    can_grow = budget < about <= MOST_TIMES * budget and sweep.plan.sweep.sampler.kind != "grid"
    return Finding(
        "cannot_tell",
        f"whether {shown} matter{'s' * (len(paths) == 1)} cannot be told from {num_complete} complete "
        f"trial{'s' * (num_complete != 1)}" + (f"; about {about} would mostly do" if about > ended else ""),
        sweep.with_more_trials(about - budget, {}) if can_grow else None,
    )
