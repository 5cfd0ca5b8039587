"""The trainings of an experiment: one run each, trained once, found again by its name and configuration.

`published/` and `studies/` list trainings and call `ensure` for each in turn, so a command that was killed
anywhere is repeated to go on: MLflow holds what is done. `finished` returns what their reports show. Read
`harness/api.py` for the functions that train.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

import harness
from harness.analysis.seeds import Difference, Estimate, compare_groups, estimate, holm, p_text
from harness.config.base import Section
from harness.config.compose import compose_run
from harness.config.schema import RunConfig, TrackingConfig
from harness.config.validation import validate
from harness.errors import ConfigError, HarnessError, TrackingError
from harness.signals import EXIT_INTERRUPTED
from harness.tracking.address import store_exists
from harness.tracking.runs import RunRecord, find_runs, read_config

VAL, TEST, TEST_AUC = "val/accuracy", "test/accuracy", "test/auc"
TEST_PLAIN = "test/accuracy_no_tta"  # of a run with test-time augmentation, without it
PFLOP = "train_pflop"
NOT_YET = "not yet run"
WALL_CLOCK = "Minutes are of the clock, whatever else the machine did."
# The images that judge train nothing; the test split is not read.
ON_VALIDATION = (
    "data.train_on_val=false",
    "data.val_fraction=0.1",
    "evaluate_test=false",
    "evaluation.pictures=none",
    "tracking.log_model=false",
)
# What may differ between two runs of one training: places, speed, and what is recorded besides numbers.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "data": ("dir", "cache_dir", "download", "feature_cache_gb", "max_memory_share", "num_workers"),
    "trainer": ("device", "threads", "compile", "keep_memory", "devices"),
    "evaluation": ("pictures",),
    "tracking": ("dir", "experiment", "run_name", "log_model"),
}

Strings = Annotated[tuple[str, ...], Field(strict=False)]


class Arm(Section):
    """One training of a plan: what it is called, and the settings that it adds."""

    name: str
    set: Strings = ()  # KEY=VALUE, as on the command line
    why: str = ""


Arms = Annotated[tuple[Arm, ...], Field(strict=False)]


@dataclass(frozen=True)
class Training:
    """One run of an experiment; its record is found by this name and configuration."""

    experiment: str
    arm: str
    seed: int
    settings: tuple[str, ...]  # all but the seed and the names

    @property
    def name(self) -> str:
        return f"{self.experiment}-{self.arm}-seed{self.seed}"

    @property
    def overrides(self) -> list[str]:
        """What `harness train` is called with."""
        names = (f"tracking.run_name={self.name}", f"tracking.experiment={self.experiment}")
        return [*self.settings, f"seed={self.seed}", *names]


class StoppedError(HarnessError):
    """A training was stopped by a signal; the same command goes on with it."""


def exit_code_of(work: Callable[[], None]) -> int:
    """Do the work of a command; return its exit code, after a line about what stopped it."""
    try:
        work()
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return os.EX_USAGE
    return os.EX_OK


def report_folder(name: str, of_its_own: Path, *, is_trial: bool) -> Path:
    """Return the folder of an experiment's report; of a trial run, one among the runs."""
    if not is_trial:
        return of_its_own
    return Path(compose_run(()).tracking.dir) / "experiments" / name


def last_of_each(settings: Sequence[str]) -> tuple[str, ...]:
    """Return the settings without those that a later one of the same key replaces: Hydra refuses doubles."""
    return tuple({text.partition("=")[0]: text for text in settings}.values())


# ── training, or finding what is recorded ─────────────────────────────────────────────────────────


def ensure(training: Training) -> RunRecord:
    """Return the finished run of a training, which is trained, or trained to its end, if need be.

    Raises:
        StoppedError: it was stopped.
        HarnessError: it cannot begin or cannot go on; another process may be training it.
    """
    run = recorded(training)
    if run is not None and run.status == "FINISHED":
        return run
    print(f"── {training.name}{'' if run is None else ' goes on'}", flush=True)
    result = harness.train(*training.overrides) if run is None else harness.resume(run.run_id)
    if result.status == "interrupted":
        raise StoppedError(f"{training.name} was interrupted: repeat the command to go on")
    run = recorded(training)
    assert run is not None, "a run that has ended well is in the store"
    return run


def recorded(training: Training) -> RunRecord | None:
    """Return the run of a training: a finished one, otherwise the newest; None if there is none."""
    tracking = TrackingConfig.at()
    if not store_exists(tracking):
        return None
    wanted = _wanted(tuple(training.overrides))
    named = find_runs(tracking, filter_string=f"attributes.run_name = '{training.name}'")
    same = [run for run in named if _essence_of(run) == wanted]
    finished = [run for run in same if run.status == "FINISHED"]
    return next(iter([*finished[::-1], *same[::-1]]), None)


@cache
def _wanted(overrides: tuple[str, ...]) -> dict[str, Any]:
    return _essence(compose_run(overrides))


def _essence_of(run: RunRecord) -> dict[str, Any] | None:
    try:
        return _essence(validate(RunConfig, read_config(run)))
    except (TrackingError, ConfigError):  # killed before it recorded its configuration; or of another version
        return None


def _essence(config: RunConfig) -> dict[str, Any]:
    """Return the settings that the result depends on."""
    values = config.to_dict()
    for section, keys in ELSEWHERE.items():
        for key in keys:
            values[section].pop(key, None)
    return values


# ── what they have found ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    seed: int
    run_id: str
    metrics: dict[str, float]  # val/… and test/… of the kept epoch, and what it cost
    minutes: float | None  # of training: the test and the record of the run come after


def finished(
    trainings: Sequence[Training], metrics: Sequence[str] = (VAL, TEST, TEST_PLAIN, TEST_AUC, PFLOP)
) -> tuple[Trained, ...]:
    """Return the trainings that have ended, as recorded, with some of their metrics."""
    found = []
    for training in trainings:
        run = recorded(training)
        if run is not None and run.status == "FINISHED":
            values = {**run.metrics, **run.results}
            kept = {key: values[key] for key in metrics if key in values}
            minutes = None if run.minutes is None else round(run.minutes, 3)
            found.append(Trained(training.seed, run.run_id, kept, minutes))
    return tuple(found)


def describe_machine(trainings: Sequence[Training]) -> tuple[str, str]:
    """Return the machine and the data set of the first of some trainings that has begun, in words."""
    run = next(filter(None, map(recorded, trainings)), None)
    if run is None:
        return "", ""
    of = {key.removeprefix("machine."): value for key, value in run.params.items()}
    threads = f"{of['threads']} thread(s)" if "threads" in of else ""
    words = filter(None, (of.get("device_name"), of.get("precision"), threads))
    return ", ".join(words), run.params.get("data.kind", "")


def describe_added(added: Sequence[str], planned: Sequence[str]) -> str:
    """Return the settings that a command has added, and what of a plan they take the place of.

    Args:
        planned: settings that the plan makes, in any order.
    """
    keys = {text.partition("=")[0] for text in added}
    void = dict.fromkeys(text for text in planned if text.partition("=")[0] in keys and text not in added)
    run_with = f"**Run with** `{' '.join(added)}`"
    if not void:
        return f"{run_with}."
    return (
        f"{run_with}, **in place of the plan's** {', '.join(f'`{text}`' for text in void)}: what differs in "
        "these alone was trained alike, and notes speak of the plan."
    )


def estimate_of(trained: Sequence[Trained], metric: str) -> Estimate | None:
    """Return the mean of a metric, a share, over seeds with its interval; None if no run has it."""
    scores = [one.metrics[metric] for one in trained if metric in one.metrics]
    return estimate(scores, is_share=True) if scores else None


def mean_of(trained: Sequence[Trained], metric: str) -> float | None:
    """Return the mean of any metric over seeds; None if no run has it."""
    values = [one.metrics[metric] for one in trained if metric in one.metrics]
    return sum(values) / len(values) if values else None


def minutes_of(trained: Sequence[Trained]) -> float | None:
    """Return the mean minutes of training."""
    minutes = [one.minutes for one in trained if one.minutes is not None]
    return sum(minutes) / len(minutes) if minutes else None


def describe(found: Estimate | None) -> str:
    """Return a mean share with its interval over seeds, in per cent."""
    if found is None:
        return NOT_YET
    if found.low is None or found.high is None:
        return f"{found.mean:.2%} (n = {found.n})"
    return f"{found.mean:.2%} ({found.low:.2%} to {found.high:.2%}, n = {found.n})"


# ── which is better ───────────────────────────────────────────────────────────────────────────────

NEW, OLD = "new", "old"  # the two sides of a difference; the first named is the better one


def scores_of(trained: Sequence[Trained], metric: str) -> dict[int, float]:
    """Return a metric by seed."""
    return {one.seed: one.metrics[metric] for one in trained if metric in one.metrics}


def differences(pairs: Sequence[tuple[Mapping[int, float], Mapping[int, float]]]) -> list[Difference | None]:
    """Compare new scores with old ones, pair by pair, on the seeds that both have.

    The p values are corrected by Holm's method over the pairs. None for a pair of which a side has fewer than
    two runs.
    """
    found = [next(iter(compare_groups({NEW: new, OLD: old})), None) for new, old in pairs]
    tested = [one.p_value for one in found if one is not None and one.p_value is not None]
    corrected = iter(holm(tested)) if tested else iter(())
    return [
        one if one is None or one.p_value is None else replace(one, corrected=next(corrected))
        for one in found
    ]


def describe_difference(pair: Difference | None, *, has_run: bool) -> str:
    """Return how much better the new side is, in points with the interval; negative: how much worse."""
    if pair is None:
        return "one seed: no interval" if has_run else NOT_YET
    sign = 1 if pair.first == NEW else -1
    if pair.low is None or pair.high is None:
        return f"{sign * pair.mean * 100:+.2f}"
    low, high = sorted((sign * pair.low * 100, sign * pair.high * 100))
    return f"{sign * pair.mean * 100:+.2f} ({low:+.2f} to {high:+.2f}; p {p_text(pair.corrected)})"
