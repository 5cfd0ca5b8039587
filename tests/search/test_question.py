"""Which sweeps ask the same."""

from __future__ import annotations

import pytest

from harness.config.compose import compose_sweep, leaves_by_path
from harness.errors import SweepError
from harness.search.study.identity import (
    ADDED_LATER,
    ADDED_LATER_BUT_FOR_TIMM,
    check_same_sweep,
    differences,
    fingerprint,
    sweep_identity,
    sweep_name,
)
from harness.search.study.locate import SAFE_NAME

BASE = ["data=digits", "model=lenet", "finetune=full"]


def name_of(*overrides: str, digest: str = "d1") -> str:
    plan = compose_sweep([*BASE, *overrides])
    return sweep_name(plan, "digits", sweep_identity(plan, digest))


@pytest.mark.parametrize(
    "override",
    ["sweep.num_trials=99", "sweep.max_minutes=1", "sweep.slots=7", "tracking.dir=elsewhere",
     "data.dir=there", "trainer.device=cpu", "trainer.threads=3", "sweep.evaluate_test=false",
     "data.feature_cache_gb=1", "data.cache_dir=there", "trainer.keep_memory=false", "trainer.compile=true",
     "tracking.log_model=false", "sweep.min_free_gb=3", "sweep.keep_checkpoints=9"],
)  # fmt: skip
def test_budget_place_and_machine_are_no_part_of_the_question(override: str) -> None:
    assert name_of(override) == name_of()


@pytest.mark.parametrize(
    "override",
    ["optim.weight_decay=0.9", "seed=5", "augment=strong", "sweep.sampler.seed=5", "trainer.max_epochs=9",
     "data.samples_per_epoch=500", "sweep.compute_per_trial=0.5", "sweep.max_passes=3",
     "sweep.compute_per_trial=auto sweep.max_minutes=9",
     "sweep.metric=val/loss sweep.direction=minimize", "sweep.pruner.kind=none", "model=keras_cnn"],
)  # fmt: skip
def test_everything_that_could_change_an_answer_is(override: str) -> None:
    assert name_of(*override.split()) != name_of()


def test_other_images_are_another_question() -> None:
    assert name_of(digest="d2") != name_of()


def test_the_name_says_what_it_can() -> None:
    assert name_of().startswith("default-digits-")
    assert name_of("sweep.name=mine") == "mine"


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("my pictures", "my-pictures"),
        ("Bilder (1)/neu", "Bilder-1-neu"),
        ("été", "été"),
        ("🦊", ""),
        ("x" * 300, "x" * 50),
    ],
)
def test_a_folder_of_any_name_gives_a_name_that_a_folder_can_have(data: str, part: str) -> None:
    plan = compose_sweep(BASE)
    name = sweep_name(plan, data, sweep_identity(plan, "d1"))
    assert SAFE_NAME.fullmatch(name)
    assert name.removeprefix("default-").rpartition("-")[0] == part


def test_the_order_of_keys_does_not_matter_to_the_fingerprint() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_differences_are_shown_on_one_line_and_cut() -> None:
    before = {"sweep.space.optim.lr.high": 0.01, "seed": 0, "a": 1, "b": 1, "c": 1, "d": "x" * 99}
    now = {"sweep.space.optim.lr.high": 0.03, "seed": 0, "a": 2, "b": 2, "c": 2, "d": "y" * 99}
    with pytest.raises(SweepError) as caught:
        check_same_sweep("mine", before, now)

    assert differences(before, now)[0] == "sweep.space.optim.lr.high: 0.01 → 0.03"
    assert "sweep.space.optim.lr.high: 0.01 → 0.03, a: 1 → 2" in str(caught.value)
    assert "and 1 more" in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_key_that_only_one_side_has_is_a_difference() -> None:
    assert differences({"a": 1}, {}) == ["a: 1 → (absent)"]
    check_same_sweep("mine", {"a": None}, {"a": None})


def test_settings_that_earlier_versions_lacked_change_nothing_until_they_are_set() -> None:
    """A sweep of an earlier version goes on under its name."""
    asked = sweep_identity(compose_sweep([*BASE, "sweep=gpu"]), "d1")
    assert not {"data.samples_per_epoch", "sweep.compute_per_trial", "sweep.max_passes"} & set(asked)


def test_dropout_is_new_but_for_timms_networks() -> None:
    timms = sweep_identity(compose_sweep([*BASE, "model=timm", "model.name=resnet18"]), "d1")
    assert timms["model.drop_rate"] == timms["model.drop_path_rate"] == 0.0
    assert "model.drop_rate" not in sweep_identity(compose_sweep(BASE), "d1")
    assert sweep_identity(compose_sweep([*BASE, "model.drop_rate=0.1"]), "d1")["model.drop_rate"] == 0.1


def test_everything_else_of_the_schema_is_part_of_the_question() -> None:
    """A new key has to be put on one of the two sides on purpose."""
    plan = compose_sweep(BASE)
    asked = {*sweep_identity(plan, "d1"), *ADDED_LATER, *ADDED_LATER_BUT_FOR_TIMM}
    base = set(leaves_by_path(plan.base.to_dict())) - asked - set(plan.sweep.space)
    assert base == {
        "data.dir", "data.cache_dir", "data.feature_cache_gb", "trainer.device", "trainer.devices",
        "trainer.threads", "trainer.keep_memory", "trainer.compile", "evaluate_test", "evaluation.pictures",
        "trainer.monitor.metric", "trainer.monitor.direction",  # sweep.metric says it
        "tracking.dir", "tracking.experiment", "tracking.run_name", "tracking.log_model",
        "tracking.system_metrics",
    }  # fmt: skip
