"""From a space to overrides, and which spaces are refused."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.config.compose import CONFIG_DIR, compose_run, compose_sweep
from harness.config.space import Choice, FloatRange, IntRange
from harness.config.sweep import SweepConfig
from harness.errors import ConfigError
from harness.search.suggest.space import (
    check_space,
    corners,
    describe_dimension,
    suggest,
)

SPACE: dict[str, Any] = {
    "finetune": Choice(values=["linear_probe", "partial"]),
    "finetune.trainable_groups": IntRange(low=1, high=3, when={"finetune": "partial"}),
    "optim.lr": FloatRange(low=1e-4, high=1e-2, log=True),
}


class Scripted:
    """A trial whose answers are given."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.asked.append(name)
        return high

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.asked.append(name)
        return low

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked.append(name)
        return self.answers[name]


def test_a_conditional_path_is_asked_for_only_in_its_arm() -> None:
    probe, partial = Scripted(finetune="linear_probe"), Scripted(finetune="partial")

    assert suggest(probe, SPACE) == {"finetune": "linear_probe", "optim.lr": 1e-2}
    assert probe.asked == ["finetune", "optim.lr"]
    assert suggest(partial, SPACE)["finetune.trainable_groups"] == 1
    assert partial.asked == list(SPACE)


@pytest.mark.parametrize("value", [True, 7, 1e-05, "plain", "1e-3", "true", "it's a\\b, {c}=$d", "图像"])
def test_a_value_survives_the_override_grammar_with_its_type(value: Any) -> None:
    path = {bool: "trainer.compile", int: "seed", float: "optim.lr"}.get(type(value), "tracking.run_name")
    fixed = ["data=digits", "model=lenet", "finetune=full"]
    plan = compose_sweep(
        [*fixed, "sweep.replicate.seeds=0", f"sweep.space={{{path}: {{type: choice, values: [null]}}}}"]
    )
    text, *_ = plan.trial_overrides({path: value})

    for config in (compose_run([*fixed, text]), plan.compose_trial({path: value})):
        tree: Any = config.to_dict()
        for part in path.split("."):
            tree = tree[part]
        assert tree == value
        assert type(tree) is type(value)


def test_a_number_for_a_path_of_text_is_text() -> None:
    plan = compose_sweep(
        ["data=digits", "sweep.space={tracking.run_name: {type: choice, values: [7, true]}}"]
    )

    names = [plan.compose_trial({"tracking.run_name": value}).tracking.run_name for value in (7, True)]
    assert names == ["7", "true"]


def test_a_rule_holds_for_its_arm_alone_and_never_against_the_user() -> None:
    rule = "sweep.rules=[{when:{finetune:full},overrides:['optim.weight_decay=0.7','trainer.max_epochs=1']}]"
    plan = compose_sweep(["data=digits", rule])
    fixed = compose_sweep(["data=digits", "trainer.max_epochs=5", rule])

    assert plan.compose_trial({"finetune": "full"}).trainer.max_epochs == 1
    assert plan.compose_trial({"finetune": "partial"}).optim.weight_decay != 0.7
    bounded = fixed.compose_trial({"finetune": "full"})
    assert (bounded.trainer.max_epochs, bounded.optim.weight_decay) == (5, 0.7)


def test_no_trial_reads_the_test_split() -> None:
    plan = compose_sweep(["data=digits", "evaluate_test=true"])

    assert plan.base.evaluate_test
    assert not plan.compose_trial({"optim.lr": 0.001}).evaluate_test


def test_corners_are_every_choice_with_both_ends_of_the_ranges() -> None:
    found = list(corners(SweepConfig(space=SPACE)))

    assert {"finetune": "linear_probe", "optim.lr": 1e-4} in found
    assert {"finetune": "linear_probe", "optim.lr": 1e-2} in found
    assert {"finetune": "partial", "finetune.trainable_groups": 3, "optim.lr": 1e-2} in found
    assert len(found) == 4


def test_the_default_space_has_an_arm_for_each_way_to_freeze() -> None:
    checked = check_space(compose_sweep(["data=digits"]))

    kinds = {config.finetune.kind for config in checked.runs.values()}
    assert kinds == {"linear_probe", "partial", "full"}
    assert len(checked.plan.arms) == 3


@pytest.mark.parametrize(
    ("space", "fault"),
    [
        ("optim.momentun: {type: float, low: 0.1, high: 0.9}", "momentun"),
        ("optim.lr: {type: float, low: -0.1, high: 0.1}", "optim.lr"),
        ("data.batch_size: {type: choice, values: [64, 32, -1]}", "batch_size=-1"),
        ("finetune: {type: choice, values: [full, partial]}", "partial"),  # of an untrained model
    ],
)
def test_an_impossible_corner_is_named(tmp_path: Path, space: str, fault: str) -> None:
    configs = Path(shutil.copytree(CONFIG_DIR, tmp_path / "configs"))
    (configs / "sweep" / "odd.yaml").write_text(f"# @package _global_\nsweep:\n  space:\n    {space}\n")
    overrides = ["sweep=odd", "data=digits", "model=lenet"]
    with pytest.raises(ConfigError, match="the space reaches a run that cannot be") as caught:
        check_space(compose_sweep(overrides, configs))

    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dimensions_are_described_for_people() -> None:
    described = [describe_dimension(dimension) for dimension in SPACE.values()]

    assert described == ["linear_probe | partial", "1 to 3, where finetune=partial", "0.0001 to 0.01 (log)"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([64, 64, 32], "64 stands among the values twice: list it once"),
        (["sgd", "adam", "sgd"], "sgd stands among the values twice"),
        ([1, True], "1 and true are one value to a sampler: list one of them"),
        ([0.5, 1, 1.0], "1 and 1.0 are one value"),
    ],
)
def test_a_value_that_is_listed_twice_is_refused(values: list[Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Choice(values=values)
