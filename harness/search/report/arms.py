"""Finds arms of a sweep (files of a searched config group) that were not treated as well as the others.

`audit.py` calls `find_unequal_arms`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from harness.config import yaml_files
from harness.config.compose import SweepPlan
from harness.config.overrides import as_override_value, path_of
from harness.config.schema import RunConfig
from harness.config.space import Choice, Scalar, as_yaml, holds
from harness.errors import ConfigError
from harness.search.report.compute import UNEQUAL, compute_of_arms, unequal_compute
from harness.search.report.findings import EndedSweep, Finding
from harness.search.study.trials import TrialRow

ENOUGH_IN_AN_ARM = 3  # trials with a score; an arm with fewer was hardly looked at

BOUNDS = {  # of what a trial sees
    "data.max_train_samples": "training images",
    "data.samples_per_epoch": "images an epoch",
    "trainer.max_epochs": "epochs",
}


def find_unequal_arms(sweep: EndedSweep) -> Iterator[Finding]:
    """Compare the arms of each searched group: what they saw, how many trials they had, how these ended."""
    groups = yaml_files.groups(sweep.plan.config_dir)
    is_counted = len(compute_of_arms(sweep.rows)) > 1
    yield from _unequal_compute(sweep)
    for path, dimension in sweep.plan.sweep.space.items():
        if path not in groups or not isinstance(dimension, Choice) or len(dimension.values) < 2:
            continue
        arms = {value: _trials_with(sweep.rows, path, value) for value in dimension.values}
        if not is_counted:
            yield from _unequal_bounds(sweep, path, {value: ended for value, ended in arms.items() if ended})
        for value, ended in arms.items():
            if (finding := _poorly_tried(sweep, path, value, ended, arms)) is not None:
                yield finding


def _trials_with(rows: Sequence[TrialRow], path: str, value: Scalar) -> list[TrialRow]:
    return [row for row in rows if row.has_ended and row.params.get(path) == value]


def _poorly_tried(
    sweep: EndedSweep, path: str, value: Scalar, ended: list[TrialRow], arms: Mapping[Scalar, list[TrialRow]]
) -> Finding | None:
    """Return what is to be said of an arm that had no chance to show what it can do."""
    arm, states = f"{path}={as_yaml(value)}", {row.state for row in ended}
    scored = [row for row in ended if row.state in ("complete", "pruned") and row.score is not None]
    if ended and "complete" not in states and "pruned" in states:
        longest = max(row.epochs_done for row in ended)
        planned = max((row.max_epochs or 0 for row in ended), default=0)
        epochs = f"after {longest} epoch{'s' * (longest != 1)} at most" + (
            f" of {planned}" if planned else ""
        )
        several = f"all {len(ended)} trials" if len(ended) > 1 else "the only trial"
        return Finding(
            "pruned_early",
            f"no trial with {arm} came to its end: {several} ended {epochs}, so what it reaches in full is "
            "not known",
            sweep.other(
                str(value),
                {
                    path: as_override_value(value),
                    "sweep.pruner.kind": "none",
                    "sweep.num_trials": str(ENOUGH_IN_AN_ARM),
                },
            ),
        )
    if ended and not scored:
        reason = next((row.reason for row in ended if row.reason), None)
        return Finding(
            "no_score",
            f"no trial with {arm} has a score ({len(ended)} {' or '.join(sorted(states))}"
            + (f": {reason})" if reason else ")"),
        )
    most = max(len(trials) for trials in arms.values())
    if len(scored) >= ENOUGH_IN_AN_ARM or most < ENOUGH_IN_AN_ARM:
        return None
    missing = ENOUGH_IN_AN_ARM - len(scored)
    points = [*sweep.plan.sweep.enqueue, *[{path: value}] * missing]
    is_possible = holds(sweep.plan.sweep.space[path].when, {})  # a point would have to fulfil its condition
    command = sweep.with_more_trials(missing, {"sweep.enqueue": _as_list(points)}) if is_possible else None
    return Finding(
        "few_trials",
        f"{arm} has {len(scored)} trial{'s' * (len(scored) != 1)} with a score, another value of {path} "
        f"{most}: too few to rule it out",
        command,
    )


def _as_list(points: Sequence[Mapping[str, Scalar]]) -> str:
    """Return points as an override's value: `[{finetune: full},{finetune: full}]`."""
    inner = (", ".join(f"{k}: {as_override_value(v)}" for k, v in point.items()) for point in points)
    return f"[{','.join(f'{{{one}}}' for one in inner)}]"


def _unequal_compute(sweep: EndedSweep) -> Iterator[Finding]:
    """Find arms that were compared at unequal compute."""
    found = unequal_compute(sweep.rows, sweep.plan.sweep, sweep.num_train)
    if found is not None:
        sentence, pflop = found
        yield Finding("unequal", sentence, _equalised(sweep, f"{pflop:.3g}"))


def _equalised(sweep: EndedSweep, pflop: str) -> str | None:
    """Return the command of the sweep with this compute for every trial; None if it had equal compute."""
    if sweep.plan.sweep.compute_per_trial is not None:
        return None
    texts = [text for rule in sweep.plan.sweep.rules for text in rule.overrides]
    bounds = dict.fromkeys(("data.max_train_samples", "data.samples_per_epoch"), "null")
    bounded = {path: value for path, value in bounds.items() if any(path_of(text) == path for text in texts)}
    return sweep.other("equal", {"sweep.compute_per_trial": pflop, **bounded})


def _unequal_bounds(
    sweep: EndedSweep, path: str, tried: Mapping[Scalar, list[TrialRow]]
) -> Iterator[Finding]:
    """Find arms whose trials may see other numbers of images or epochs than those of another.

    It is asked where their compute was not counted.
    """
    runs = {value: _config_of(sweep.plan, trials[0]) for value, trials in tried.items()}
    known = {value: run for value, run in runs.items() if run is not None}
    said: list[str] = []
    changes: dict[str, str] = {}
    for key, what in BOUNDS.items():
        bounds = {value: _setting(run, key) for value, run in known.items()}
        sizes = [_size(key, bound, sweep.num_train or math.inf) for bound in bounds.values()]
        if len(sizes) < 2 or key in sweep.plan.sweep.space or max(sizes) <= UNEQUAL * min(sizes):
            continue
        for value, bound in bounds.items():
            said.append(f"{as_yaml(value)} {'all' if bound is None else format(bound, ',')} {what}")
        finite = [bound for bound in bounds.values() if bound is not None]
        changes[key] = "null" if len(finite) < len(bounds) else str(max(finite))
    if said:
        yield Finding(
            "unequal",
            f"the values of {path} were not treated alike, so their scores do not compare: {', '.join(said)}",
            sweep.other("equal", changes),
        )


def _size(key: str, bound: int | None, num_train: float) -> float:
    """Return what a bound comes to where there are so many training images."""
    if bound is None:
        return num_train
    return min(num_train, bound) if key == "data.max_train_samples" else bound


def _config_of(plan: SweepPlan, row: TrialRow) -> RunConfig | None:
    try:
        return plan.compose_trial(row.params)
    except ConfigError:  # files that have changed since
        return None


def _setting(run: RunConfig, path: str) -> int | None:
    section, key = path.split(".")
    value = getattr(getattr(run, section), key)
    return None if value is None else int(value)
