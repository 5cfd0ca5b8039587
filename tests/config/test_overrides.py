"""What the command line may say: types, names, groups that are left out, keys of some arms, spaces."""

from __future__ import annotations

from typing import Any

import pytest

from harness.config.compose import compose_run, compose_sweep
from harness.errors import ConfigError
from harness.search.study.identity import sweep_identity
from harness.search.suggest.space import check_space, suggest

OPTIMS = "sweep.space.optim={type: choice, values: [sgd, adamw]}"


def fault(overrides: list[str], *, of_sweep: bool = False) -> str:
    with pytest.raises(ConfigError) as raised:
        compose_sweep(overrides) if of_sweep else compose_run(overrides)
    line = str(raised.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=true", "data.batch_size=true: expected a whole number"),
        ("data.batch_size='64'", "expected a whole number: write it without quotes, 64"),
        ("data.max_train_samples=1e3", "expected a whole number: write 1000"),
        ("optim.lr=true", "optim.lr=true: expected a number"),
        ("optim.lr='1e3'", "optim.lr=1e3: expected a number"),
        ("trainer.compile=1", "trainer.compile=1: expected true or false"),
        ("trainer.compile=yes", "trainer.compile=yes: expected true or false"),
        ("augment.flip=1", "augment.flip=1: expected true or false or 'alternating'"),
        ("optim.schedule=3", "optim.schedule=3: expected keys with values"),
        ("model=null", "model=null: it cannot be left out; valid here: efficientnet_lite0"),
        ("data=null", "data=null: it cannot be left out; valid here: auto"),
        ("~model", "~model: it cannot be left out"),
        ("model=[lenet,vgg16]", "model=[lenet,vgg16]: no such file"),
        ("model@other=lenet", "write model=FILE"),
        ("model=LeNet", "did you mean 'lenet'"),
        ("sweep=default", "belongs to a sweep: use `harness sweep`"),
        ("sweep.num_trials=3", "belongs to a sweep: use `harness sweep`"),
        ("hydra.verbose=true", "mean nothing here"),
        ("optim.lr=${optim.lrr}", "optim.lr: Interpolation key 'optim.lrr' not found"),
        ("optim.lr=???", "optim.lr is not set"),
        ("--status", "cannot read '--status'"),
    ],
)
def test_a_value_of_another_type_or_place_is_refused(override: str, message: str) -> None:
    assert message in fault([override])


def test_a_whole_number_will_do_for_a_number() -> None:
    assert compose_run(["optim.lr=1"]).optim.lr == 1.0


def test_a_run_is_without_a_recipe_anyway() -> None:
    assert compose_run(["recipe=null"]) == compose_run(["~recipe"]) == compose_run([])


@pytest.mark.parametrize(
    "name", ["2026_11_25", "20261125", "2026-11-25", "1e5", "true", "none", "0x10", "1.50"]
)
def test_a_name_stays_the_text_that_was_written(name: str) -> None:
    assert compose_sweep([f"sweep.name={name}"]).sweep.name == name
    assert compose_run([f"tracking.run_name={name}"]).tracking.run_name == name
    assert compose_run([f"data.dir={name}"]).data.dir == name
    options = ["sweep.executor.kind=slurm", f"sweep.executor.options.nice={name}"]
    assert compose_sweep(options).sweep.executor.options == {"nice": name}  # type: ignore[union-attr]


def test_null_is_no_name() -> None:
    assert compose_sweep(["sweep.name=null"]).sweep.name is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep=null", "sweep=null: it cannot be left out; valid here: default, gpu"),
        ("sweep.enqueue={optim.lr: 0.1}", "sweep.enqueue={'optim.lr': 0.1}: expected a list"),
        ("sweep.enqueue=[3]", "sweep.enqueue.0=3: expected keys with values"),
        ("sweep.enqueue=[{finetune: Full}]", "finetune=Full is outside of the space; did you mean 'full'?"),
        ("sweep.space=[1,2]", "sweep.space=[1, 2]: expected keys with values"),
        ("sweep.space=null", "sweep.space=null: expected keys with values"),
        ("sweep.rules=[3]", "sweep.rules.0=3: expected keys with values"),
        ("sweep.slots=autoo", "sweep.slots=autoo: expected a whole number or 'auto'"),
        ("sweep.space.optim.lrr.high=1", "did you mean 'optim.lr'?"),
        ("sweep.space.optim.lr=0.1", "to fix its value, write optim.lr=0.1"),
        ("sweep.space.optim.lr={low: 0.001, high: 0.1}", "sweep.space.optim.lr has no type: add type: float"),
        ("sweep.space.seed={low: 1, high: 3}", "sweep.space.seed has no type: add type: int"),
        ("sweep.space.seed={values: [1, 2]}", "sweep.space.seed has no type: add type: choice"),
        ("sweep.space={optim: {lr: {type: float}}}", "write the path as one key, optim.lr: {…}"),
        ("sweep.space.data.batch_size.values=[64, 64, 32]", "64 stands among the values twice"),
        ("sweep.space.seed={type: choice, values: [1, 1.0]}", "1 and 1.0 are one value"),
        ("finetune.kind=full", "finetune is searched: to fix it, write finetune=FILE"),
        ("finetune.trainable_grups=2", "unknown key 'finetune.trainable_grups'"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_with_the_nearest_that_can(override: str, message: str) -> None:
    assert message in fault([override], of_sweep=True)


# ── the space ─────────────────────────────────────────────────────────────────────────────────────


def test_one_key_of_a_dimension_is_set() -> None:
    space = compose_sweep(["sweep.space.optim.lr.high=0.1"]).sweep.space
    assert (space["optim.lr"].low, space["optim.lr"].high) == (1e-3, 0.1)  # type: ignore[union-attr]
    assert len(space) == 4


def test_a_given_space_replaces_the_files_and_rules_follow_what_is_not_searched() -> None:
    plan = compose_sweep(["finetune=full", "sweep.space={optim.lr: {type: float, low: 1e-4, high: 1e-2}}"])
    assert list(plan.sweep.space) == ["optim.lr"]
    assert [rule.overrides for rule in plan.sweep.rules] == [["finetune.backbone_lr_scale=0.5"]]
    probe = compose_sweep(["sweep.space={optim.lr: {type: float, low: 1e-4, high: 1e-2}}"])
    assert probe.sweep.rules == []  # the file's own finetune is a linear probe


def test_a_given_dimension_replaces_the_files_and_one_can_be_taken_out() -> None:
    plan = compose_sweep(
        ["sweep.space.optim.lr={type: choice, values: [0.1]}", "~sweep.space.data.batch_size"]
    )
    assert plan.sweep.space["optim.lr"].model_dump()["values"] == [0.1]
    assert "data.batch_size" not in plan.sweep.space


def test_a_setting_may_be_off_in_some_trials() -> None:
    plan = compose_sweep(["sweep.space.optim.clip_grad_norm={type: choice, values: [null, 1.0]}"])
    for value in (None, 1.0):
        trial = plan.compose_trial({"optim.clip_grad_norm": value})
        assert trial.optim.clip_grad_norm == value
    check_space(plan)


def test_a_space_that_is_fixed_whole_is_one_trial() -> None:
    fixed = ["optim.lr=3e-3", "finetune=full", "data.batch_size=64"]
    plan = compose_sweep(fixed)
    assert (plan.sweep.space, plan.sweep.num_trials) == ({}, 1)
    assert suggest(None, plan.sweep.space) == {}  # type: ignore[arg-type]
    (arm,) = check_space(plan).runs.values()
    assert (arm.optim.lr, arm.finetune.kind, arm.data.batch_size) == (3e-3, "full", 64)
    assert compose_sweep([*fixed, "sweep.num_trials=3"]).sweep.num_trials == 3


# ── what only some arms have ──────────────────────────────────────────────────────────────────────


def test_a_key_that_one_arm_has_holds_for_that_arm() -> None:
    plan = compose_sweep(["finetune.trainable_groups=2"])
    assert "finetune.trainable_groups" not in plan.sweep.space
    runs = [plan.compose_trial({"finetune": kind}) for kind in ("linear_probe", "partial", "full")]
    assert [getattr(run.finetune, "trainable_groups", None) for run in runs] == [None, 2, None]
    check_space(plan)


def test_a_key_that_no_arm_has_is_unknown() -> None:
    adams = "sweep.space.optim={type: choice, values: [adam, adamw]}"
    assert "unknown key 'optim.momentum'" in fault([adams, "optim.momentum=0.8"], of_sweep=True)


def test_a_key_of_some_arms_is_part_of_the_question() -> None:
    def asked(momentum: float) -> dict[str, Any]:
        return sweep_identity(compose_sweep([OPTIMS, f"optim.momentum={momentum}"]), "digest")

    runs = compose_sweep([OPTIMS, "optim.momentum=0.8"])
    assert runs.compose_trial({"optim": "sgd"}).optim.momentum == 0.8  # type: ignore[union-attr]
    assert not hasattr(runs.compose_trial({"optim": "adamw"}).optim, "momentum")
    assert asked(0.8) != asked(0.7)


# ── conditions ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.space.seed={type: int, low: 0, high: 9, when: {optim: SGD}}", "did you mean 'sgd'?"),
        (
            "sweep.space.seed={type: int, low: 0, high: 9, when: {optim: [sgd, adan]}}",
            "optim=adan, which can",
        ),
        ("sweep.rules=[{when: {optim: SGD}, overrides: ['seed=1']}]", "did you mean 'sgd'?"),
        ("sweep.rules=[{when: {optm: sgd}, overrides: ['seed=1']}]", "did you mean 'optim'"),
        ("sweep.rules=[{when: {optim.lr: 0.003}, overrides: ['seed=1']}]", "a range of numbers: that never"),
        ("sweep.rules=[{when: {finetune.trainable_groups: 9}, overrides: ['seed=1']}]", "from 1 to 3"),
        (
            "sweep.rules=[{when: {data.batch_size: '64'}, overrides: ['seed=1']}]",
            "its values are 32, 64, 128",
        ),
        ("sweep.rules=[{when: {optim: []}, overrides: ['seed=1']}]", "can never hold: no value of optim"),
        (
            "sweep.rules=[{when: {finetune.trainable_groups: 1, finetune: full}, overrides: ['seed=1']}]",
            "can never hold: no value of finetune suits",
        ),
    ],
)
@pytest.mark.parametrize("fixed", [[], ["optim=sgd"]])
def test_a_condition_that_can_never_hold_is_refused(override: str, message: str, fixed: list[str]) -> None:
    assert message in fault([OPTIMS, override, *fixed], of_sweep=True)


def test_conditions_that_can_hold_are_kept() -> None:
    seed = "sweep.space.seed={type: int, low: 0, high: 9, when: {optim: [sgd, adamw], data.batch_size: 64}}"
    plan = compose_sweep([OPTIMS, seed, "sweep.replicate.seeds=0"])  # which draws seeds of its own
    assert plan.sweep.space["seed"].when == {"optim": ["sgd", "adamw"], "data.batch_size": 64}


def test_a_point_that_contradicts_what_is_fixed_is_named(caplog: pytest.LogCaptureFixture) -> None:
    points = "[{optim.lr: 0.002, finetune: full}, {optim.lr: 0.003, finetune: partial}, {finetune: full}]"
    plan = compose_sweep([f"sweep.enqueue={points}", "finetune=full"])

    assert plan.sweep.enqueue == [{"optim.lr": 0.002}]
    assert [record.getMessage() for record in caplog.records] == [
        "enqueue: no trial begins at optim.lr=0.003, finetune=partial, as finetune=full is fixed",
        "enqueue: no trial begins at finetune=full, as finetune=full is fixed",
    ]
