"""What an experiment has found so far: read from its recorded runs, kept in `results.json` beside its
report.

`__main__.py` calls `gather` after each training and writes what it returns; `report.py` turns it into text.
The store of runs stays with whoever trained; the file lets everybody else make the table of all
experiments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.published import leak, timing
from experiments.published.plan import Experiment
from experiments.trainings import VAL, Trained, describe_machine, differences, finished, recorded, scores_of
from harness.analysis.seeds import Difference

RESULTS = "results.json"


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
    machine, data = describe_machine(experiment.published())
    timed = [recorded(one) for one in timing.trainings(experiment)]
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


# ── what it shows ─────────────────────────────────────────────────────────────────────────────────


def gains(results: Results) -> list[Difference | None]:
    """Return what each step of the ladder gave over the one before it; None for a step that has not run."""
    scores = [scores_of(step, VAL) for step in results.ladder]
    return differences([(after, before) for before, after in pairwise(scores)])
