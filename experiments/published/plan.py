"""What an experiment trains: its plan, read from `experiment.yaml`, and the trainings that follow from it.

`__main__.py` reads plans and trains what they list; `report.py` asks which runs belong to which part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field

from experiments.trainings import ON_VALIDATION, Arm, Arms, Strings, Training, last_of_each
from harness.config.base import Section
from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.config.validation import validate
from harness.config.yaml_files import read_yaml
from harness.errors import ConfigError, did_you_mean
from harness.files import slug
from harness.tracking.tracker import flatten

FOLDER = Path(__file__).parent
PLAN_FILE = "experiment.yaml"
ON_EVERYTHING = ("data.train_on_val=true", "evaluate_test=true")  # trains on all images, tested once
ON_DIGITS = ("data=digits", "data.max_train_samples=200", "trainer.max_epochs=1", "evaluation.pictures=none")


class Plan(Section):
    """An experiment: a published training, its figure, and the way from there to a better one."""

    title: str
    source: str  # what was published, in words
    published: float | None  # test accuracy that the published script gave, run as printed; None: not known
    claimed: str = ""  # what its text claims
    recipe: str  # in configs/recipe/
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = (0, 1, 2)
    without_weights: Strings = ()  # added where the recipe's pretrained weights cannot be loaded
    strategies: Arms = ()  # trained and tested like the published training
    ladder: Arms = ()  # each step adds to those before it
    goal: float | None = None  # test accuracy that the whole ladder is to reach, within `minutes`
    minutes: float = 15.0
    tests_on_training: bool = False  # also measure what training on test images does to the figure
    notes: Strings = ()  # paragraphs for the report


@dataclass(frozen=True)
class Experiment:
    """A plan, and how it is run here.

    Args:
        name: of its folder and of its runs.
        added: settings of all its trainings, besides the recipe's; the last word.
        seeds: of each training.
    """

    name: str
    plan: Plan
    added: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def published(self) -> list[Training]:
        """Return the published training, with each seed."""
        return self.trainings("published", ())

    @cached_property
    def config(self) -> RunConfig:
        """The published training's configuration, with the first seed."""
        return compose_run(self.published()[0].overrides)

    def strategy(self, arm: Arm) -> list[Training]:
        """Return a strategy that is compared with the published training."""
        return self.trainings(slug(arm.name), arm.set)

    def step(self, number: int) -> list[Training]:
        """Return the ladder up to a step, judged on validation; 0 is the published training."""
        return self.trainings(f"step{number}", (*self.settings_of_step(number), *ON_VALIDATION))

    def final(self) -> list[Training]:
        """Return the whole ladder, trained on all training images and tested once."""
        return self.trainings("ours", (*self.settings_of_step(len(self.plan.ladder)), *ON_EVERYTHING))

    @cached_property
    def planned(self) -> tuple[str, ...]:
        """Every setting of the recipe, of the strategies and of the ladder."""
        recipe = compose_run([f"recipe={self.plan.recipe}"])
        values = {"data": recipe.data.kind, **flatten(recipe.to_dict())}
        arms = (*self.plan.strategies, *self.plan.ladder)
        return (
            *(f"{key}={value}" for key, value in values.items()),
            *(text for arm in arms for text in arm.set),
        )

    def settings_of_step(self, number: int) -> tuple[str, ...]:
        """Return what the ladder's first steps set; a later step may set a key again."""
        return tuple(text for arm in self.plan.ladder[:number] for text in arm.set)

    def trainings(self, arm: str, settings: tuple[str, ...]) -> list[Training]:
        """Return a training with each of the experiment's seeds."""
        every = last_of_each((f"recipe={self.plan.recipe}", *settings, *self.added))
        return [Training(self.name, arm, seed, every) for seed in self.seeds]


def experiment_names() -> list[str]:
    """Return the names of all experiments, in the order of their folders."""
    return sorted(file.parent.name for file in FOLDER.glob(f"*/{PLAN_FILE}"))


def load(name: str, *, seeds: tuple[int, ...] | None = None, added: tuple[str, ...] = ()) -> Experiment:
    """Return an experiment of a folder.

    Raises:
        ConfigError: there is no such folder, or its plan has a mistake.
    """
    if name not in experiment_names():
        raise ConfigError(f"there is no experiment {name!r}{did_you_mean(name, experiment_names())}")
    plan = validate(Plan, read_yaml(FOLDER / name / PLAN_FILE))
    return Experiment(name, plan, added, plan.seeds if seeds is None else seeds)
