"""What an experiment has found so far: read from its recorded runs, kept in `results.json` beside its
report.

`__main__.py` calls `gather` after each training and writes what it returns; `report.py` turns it into text.
The store of runs stays with whoever trained; the file lets everybody else make the table of all
experiments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.published import leak, runs, timing
from experiments.published.plan import Experiment, Training
from harness.analysis.seeds import Difference, Estimate, compare_groups, estimate, holm
from harness.tracking.runs import RunRecord

RESULTS = "results.json"
VAL, TEST, TEST_AUC = "val/accuracy", "test/accuracy", "test/auc"
TEST_PLAIN = "test/accuracy_no_tta"  # of a run with test-time augmentation, without it


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    seed: int
    run_id: str
    metrics: dict[str, float]  # val/… and test/… of the kept epoch
    minutes: float | None  # of training: the test and the record of the run come after
    images_per_second: float | None

    @classmethod
    def of(cls, seed: int, run: RunRecord) -> Trained:
        wanted = (VAL, TEST, TEST_PLAIN, TEST_AUC)
        return cls(
            seed,
            run.run_id,
            {key: value for key, value in run.results.items() if key in wanted},
            None if run.minutes is None else round(run.minutes, 3),
            run.metrics.get("images_per_second"),
        )


@dataclass(frozen=True)
class Results:
    """All that is recorded of an experiment; what has not run is empty."""

    experiment: str
    data: str = ""  # the name of the data set
    machine: str = ""
    added: tuple[str, ...] = ()  # settings besides the plan's, such as another backbone
    published: tuple[Trained, ...] = ()
    strategies: dict[str, tuple[Trained, ...]] = field(default_factory=dict)
    ladder: tuple[tuple[Trained, ...], ...] = ()  # from the published training (0) to the last step
    final: tuple[Trained, ...] = ()
    seconds: tuple[timing.Seconds, ...] = ()
    honest: tuple[Trained, ...] = ()  # see `leak.py`
    mixed: tuple[Trained, ...] = ()
    script: tuple[tuple[float, float], ...] = ()  # test accuracy before and after it trains on test images
    planted: tuple[int, int] | None = None  # test images among the training images; those that trained

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, file: Path) -> Results:
        """Return what `to_json` has written."""
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for key in ("published", "final", "honest", "mixed"):
            values[key] = _trained(values[key])
        values["strategies"] = {name: _trained(found) for name, found in values["strategies"].items()}
        values["ladder"] = tuple(map(_trained, values["ladder"]))
        values["seconds"] = tuple(timing.Seconds(**one) for one in values["seconds"])
        values["script"] = tuple((before, after) for before, after in values["script"])
        values["planted"] = values["planted"] and tuple(values["planted"])
        return cls(**{**values, "added": tuple(values["added"])})


def _trained(values: Sequence[Mapping[str, Any]]) -> tuple[Trained, ...]:
    return tuple(Trained(**one) for one in values)


def gather(experiment: Experiment, copies: leak.Copies | None, planted: tuple[int, int] | None) -> Results:
    """Return what is recorded of an experiment.

    Args:
        copies: of the data with test images among the training images, if they are there.
        planted: see `Results`.
    """
    plan = experiment.plan
    published = finished(experiment.published())
    machine, data = _describe(experiment)
    timed = [runs.recorded(one) for one in timing.trainings(experiment)]
    seconds = [timing.seconds_of(run) for run in timed if run is not None]
    scripts = [leak.recorded_script(experiment, seed) for seed in experiment.seeds]
    return Results(
        experiment=experiment.name,
        data=data,
        machine=machine,
        added=experiment.added,
        published=published,
        strategies={arm.name: finished(experiment.strategy(arm)) for arm in plan.strategies},
        ladder=tuple(finished(experiment.step(number)) for number in range(len(plan.ladder) + 1))
        if plan.ladder
        else (),
        final=finished(experiment.final()) if plan.ladder else (),
        seconds=tuple(pair for pair in seconds if pair is not None),
        honest=finished(leak.honest(experiment)) if plan.tests_on_training else (),
        mixed=() if copies is None else finished(leak.mixed(experiment, copies)),
        script=tuple(pair for pair in scripts if pair is not None) if plan.tests_on_training else (),
        planted=planted,
    )


def finished(trainings: Sequence[Training]) -> tuple[Trained, ...]:
    """Return the trainings that have ended, as recorded."""
    found = ((one.seed, runs.recorded(one)) for one in trainings)
    return tuple(Trained.of(seed, run) for seed, run in found if run is not None and run.status == "FINISHED")


def _describe(experiment: Experiment) -> tuple[str, str]:
    """Return the machine and the data set of the newest recorded run of the published training."""
    for training in experiment.published():
        run = runs.recorded(training)
        if run is not None:
            of = {key.removeprefix("machine."): value for key, value in run.params.items()}
            words = (
                of.get("device_name"),
                of.get("precision"),
                f"{of['threads']} thread(s)" if "threads" in of else "",
            )
            return ", ".join(filter(None, words)), run.params.get("data.kind", "")
    return "", ""


# ── what it shows ─────────────────────────────────────────────────────────────────────────────────


def estimate_of(trained: Sequence[Trained], metric: str) -> Estimate | None:
    """Return the mean of a metric over seeds with its interval; None if no run has it."""
    scores = [one.metrics[metric] for one in trained if metric in one.metrics]
    return estimate(scores, is_share=True) if scores else None


def gains(results: Results) -> list[Difference | None]:
    """Return what each step of the ladder gave over the one before it, on the seeds that both have.

    The first named of a difference is the better one: "after" for a gain, "before" for a loss. The p values
    are corrected by Holm's method over the steps. None for a step that has not run.
    """
    scores = [{one.seed: one.metrics[VAL] for one in step if VAL in one.metrics} for step in results.ladder]
    found: list[Difference | None] = []
    for before, after in pairwise(scores):
        pairs = (
            compare_groups({"after": after, "before": before}) if len(before) > 1 and len(after) > 1 else []
        )
        found.append(pairs[0] if pairs else None)
    tested = [one.p_value for one in found if one is not None and one.p_value is not None]
    corrected = iter(holm(tested)) if tested else iter(())
    return [
        one if one is None or one.p_value is None else replace(one, corrected=next(corrected))
        for one in found
    ]


def minutes_of(trained: Sequence[Trained]) -> float | None:
    """Return the mean minutes of training."""
    minutes = [one.minutes for one in trained if one.minutes is not None]
    return sum(minutes) / len(minutes) if minutes else None
