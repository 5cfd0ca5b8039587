"""What a study trains: its plan, read from `study.yaml`, and the trainings that follow from it.

`__main__.py` reads plans and trains what they list; `report.py` asks which runs belong to which arm.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from experiments.trainings import (
    ON_VALIDATION,
    VAL,
    Arm,
    Arms,
    Strings,
    Training,
    last_of_each,
    recorded,
)
from harness.config.base import Section
from harness.config.validation import validate
from harness.config.yaml_files import read_yaml
from harness.errors import ConfigError, did_you_mean
from harness.files import slug

FOLDER = Path(__file__).parent
PLAN_FILE = "study.yaml"
ARM_IN_BRACES = re.compile(r"\{([^{}:,]+)\}")


class StudyArm(Arm):
    """A training of a study, or several trained models as one.

    Args:
        combine: names the arm whose runs are the members; this arm trains nothing.
        soup: whether their weights are averaged, not their probabilities.
        greedy: whether members are chosen on the validation images.
    """

    combine: str | None = None
    soup: bool = False
    greedy: bool = False


class Study(Section):
    """A question, and the trainings that answer it.

    A setting may name another arm in braces, `distill.teacher={teacher}`: it stands for that arm's run of the
    same seed and level.
    """

    title: str
    question: str
    base: Strings  # settings of every training
    digits: Strings  # added to all of them on scikit-learn's digits, where a study takes minutes
    # The others are compared with the first.
    arms: Annotated[tuple[StudyArm, ...], Field(strict=False, min_length=2)]
    members: PositiveInt = 1  # runs of an arm for each seed; their mean is its score
    factor: str = ""  # what the levels differ in
    levels: Arms = ()
    int8: bool = False  # each run is also exported with 8 bits, see `int8.py`
    metric: str = VAL  # a share; higher is better
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = (0, 1, 2)
    notes: Strings = ()  # paragraphs for the report

    @model_validator(mode="after")
    def _names_known_arms(self) -> Self:
        before: set[str] = set()
        for arm in self.arms:
            for text in arm.set:
                for name in ARM_IN_BRACES.findall(text):
                    if name not in before:
                        raise ValueError(f"{text}: no arm before {arm.name!r} is called {name!r}")
            if arm.combine is not None and (arm.combine not in before or self.members < 2):
                raise ValueError(
                    f"{arm.name!r} combines {arm.combine!r}: name an arm before it, and two members or more"
                )
            before.add(arm.name)
        return self

    @property
    def settings(self) -> tuple[str, ...]:
        """Every setting of the plan, those for the digits aside."""
        arms = (*self.levels, *self.arms)
        return (*self.base, *(text for arm in arms for text in arm.set))


@dataclass(frozen=True)
class Cell:
    """An arm at a level, and its trainings: so many for each seed as the study has members."""

    level: str
    arm: StudyArm
    trainings: tuple[Training, ...]  # of an arm that combines: its members


@dataclass(frozen=True)
class Experiment:
    """A study, and how it is run here.

    Args:
        name: of its folder and of its runs.
        added: settings of all its trainings, the last word.
        seeds: of each training.
    """

    name: str
    study: Study
    added: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def cells(self) -> list[Cell]:
        """Return what is trained, level by level, in the order in which it is."""
        levels = self.study.levels or (Arm(name=""),)
        return [self.cell(level, arm) for level in levels for arm in self.study.arms]

    def cell(self, level: Arm, arm: StudyArm) -> Cell:
        """Return an arm at a level."""
        if arm.combine is not None:
            (of,) = (one for one in self.study.arms if one.name == arm.combine)
            return replace(self.cell(level, of), arm=arm)
        settings = last_of_each([*self.study.base, *ON_VALIDATION, *level.set, *arm.set, *self.added])
        named = slug(f"{level.name} {arm.name}".strip())
        members = self.study.members
        seeds = (seed * members + number for seed in self.seeds for number in range(members))
        return Cell(level.name, arm, tuple(Training(self.name, named, seed, settings) for seed in seeds))

    def settled(self, cell: Cell, trainings: Sequence[Training] | None = None) -> tuple[Training, ...]:
        """Return a cell's trainings, or some of them, with runs' ids in place of the arms that they name.

        Those whose named runs have not finished are left out.
        """
        given = cell.trainings if trainings is None else trainings
        found = [replace(one, settings=self._with_runs(cell.level, one)) for one in given]
        return tuple(one for one in found if not any(map(ARM_IN_BRACES.search, one.settings)))

    def _with_runs(self, level: str, training: Training) -> tuple[str, ...]:
        def run_of(found: re.Match[str]) -> str:
            (cell,) = (one for one in self.cells() if (one.level, one.arm.name) == (level, found[1]))
            same_seed = [one for one in cell.trainings if one.seed == training.seed]
            runs = map(recorded, self.settled(cell, same_seed))
            ids = [run.run_id for run in runs if run is not None and run.status == "FINISHED"]
            return ids[0] if ids else found[0]

        return tuple(ARM_IN_BRACES.sub(run_of, text) for text in training.settings)


def study_names() -> list[str]:
    """Return the names of all studies, in the order of their folders."""
    return sorted(file.parent.name for file in FOLDER.glob(f"*/{PLAN_FILE}"))


def load(name: str, *, seeds: tuple[int, ...] | None = None, on_digits: bool = False) -> Experiment:
    """Return the study of a folder.

    Raises:
        ConfigError: there is no such folder, or its plan has a mistake.
    """
    if name not in study_names():
        raise ConfigError(f"there is no study {name!r}{did_you_mean(name, study_names())}")
    study = validate(Study, read_yaml(FOLDER / name / PLAN_FILE))
    return Experiment(name, study, study.digits if on_digits else (), study.seeds if seeds is None else seeds)
