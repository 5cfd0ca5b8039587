"""Composition: overrides, groups, provenance, and one clear line for each mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from harness.config.compose import (
    CONFIG_DIR,
    SweepPlan,
    compose_run,
    compose_sweep,
    compose_values,
    leaves_by_path,
    trace_origins,
)
from harness.config.provenance import annotate
from harness.config.schema import RunConfig
from harness.errors import ConfigError


def test_groups_and_values_are_overridden() -> None:
    config = compose_run(["model=wide_cnn", "optim=sgd", "optim.lr=3e-4", "trainer.max_epochs=5"])
    assert (config.model.kind, config.optim.kind, config.optim.lr) == ("wide_cnn", "sgd", 3e-4)
    assert config.trainer.max_epochs == 5


def test_a_key_that_the_yaml_leaves_out_can_be_set() -> None:
    assert compose_run(["optim.clip_grad_norm=1.5"]).optim.clip_grad_norm == 1.5


def test_a_path_with_spaces_and_an_equals_sign_survives() -> None:
    assert compose_run(['data.dir="/my pictures/a=b (1)"']).data.dir == "/my pictures/a=b (1)"


def test_environment_sets_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", "/somewhere/else, really")
    assert compose_run([]).data.dir == "/somewhere/else, really"


def test_composing_leaves_no_hydra_state_behind() -> None:
    from hydra.core.global_hydra import GlobalHydra

    compose_run([])
    assert not GlobalHydra.instance().is_initialized()


def test_the_configuration_cannot_be_changed() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="frozen"):
        compose_run([]).seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modle=lenet"], "unknown key 'modle'; did you mean 'model'"),
        (["model=lenett"], "model=lenett: no such file in configs/model; did you mean 'lenet'"),
        (["optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'lr'"),
        (["optim.schedule.warmup_epoch=1"], "did you mean 'warmup_epochs'"),
        (
            ["optim=adam", "optim.momentum=0.9"],
            "unknown key 'optim.momentum'; valid here: accumulate_batches, beta1",
        ),
        (["optim.schedule.kind=cosin"], "optim.schedule.kind=cosin: unknown; did you mean 'cosine'"),
        (["model.kind=lenett"], "model.kind=lenett: unknown; did you mean 'lenet'"),
        (["optim.lr=-1"], "optim.lr=-1: input should be greater than 0"),
        (["optim.lr=fast"], "optim.lr=fast: expected a number"),
        (["optim.lr=nan"], "optim.lr=nan: input should be a finite number"),
        (["data.batch_size=12.5"], "data.batch_size=12.5: expected a whole number"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0: input should be greater than or equal to 1"),
        (["model=timm"], "model.name is not set: give it a value"),
        (["optim=sgd", "optim.momentum=0"], "nesterov needs momentum above 0"),
        (["model=lenet", "finetune=partial"], "finetune=partial would freeze random weights of lenet"),
        (["optim.schedule.warmup_epochs=10"], "leaves nothing of trainer.max_epochs=10"),
        (["data.max_train_samples=64"], "data.batch_size=128 is larger than data.max_train_samples=64"),
        (["data.samples_per_epoch=64"], "data.batch_size=128 is larger than data.samples_per_epoch=64"),
        (
            ["augment=mix", "augment.mix_off_epoch=10"],
            "is not within trainer.max_epochs=10: lower it, or set",
        ),
        (["data.dir=a(b"], "cannot read the override 'data.dir=a(b'"),
        (["optim.lr=1,2"], "searches are written in configs/sweep/"),
    ],
)
def test_a_mistake_gets_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_run(overrides)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep=defualt"], "did you mean 'default'"),
        (["sweep.num_trial=3"], "unknown key 'sweep.num_trial'; did you mean 'num_trials'"),
        (["sweep.pruner.kind=medain"], "did you mean 'median'"),
        (["sweep.direction=minimize"], "direction=minimize does not suit metric=val/accuracy"),
        (["sweep.space.seed={type: int, low: 3, high: 1}"], "low=3 must be below high=1"),
        (["sweep.space.seed={type: float, low: 0, high: 1, log: true}"], "log=true needs low above 0"),
        (["sweep.space.model={type: choice, values: [lenett]}"], "no file 'lenett'; did you mean 'lenet'"),
        (
            ["sweep.space.model={type: int, low: 1, high: 2}"],
            "is a config group: search it with type: choice",
        ),
        (["sweep.space.seed={type: int, low: 0, high: 9, when: {mood: good}}"], "depends on 'mood'"),
        (["sweep.rules=[{when: {mood: good}, overrides: ['seed=1']}]"], "a rule depends on 'mood'"),
    ],
)
def test_a_mistake_in_a_sweep_gets_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_sweep(overrides)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_the_user_fixes_leaves_the_space() -> None:
    plan = compose_sweep(["optim.lr=3e-4", "finetune=full"])
    assert "optim.lr" not in plan.sweep.space
    assert not [path for path in plan.sweep.space if path.startswith("finetune")]  # its dependants too
    assert plan.base.optim.lr == 3e-4


def test_what_hangs_on_a_fixed_choice_is_settled() -> None:
    assert compose_sweep(["finetune=partial"]).sweep.space["finetune.trainable_groups"].when == {}
    rule = "sweep.rules=[{when: {finetune: [partial, full]}, overrides: ['seed=1']}]"
    assert compose_sweep([rule, "finetune=linear_probe"]).sweep.rules == []
    assert compose_sweep([rule, "finetune=full"]).sweep.rules[0].when == {}
    assert compose_sweep([rule]).sweep.rules[0].when == {"finetune": ["partial", "full"]}


def test_a_trial_is_the_base_with_overrides_on_top() -> None:
    plan = compose_sweep(["trainer.max_epochs=3"])
    trial = plan.compose_trial({"finetune": "partial", "finetune.trainable_groups": 2, "optim.lr": 0.5})
    assert (trial.finetune.kind, trial.optim.lr, trial.trainer.max_epochs) == ("partial", 0.5, 3)
    assert trial.model == plan.base.model


@pytest.fixture
def own_configs(tmp_path: Path) -> Path:
    """A sweep of the user's own: one value hangs on another, and a rule adds one."""
    configs = Path(shutil.copytree(CONFIG_DIR, tmp_path / "configs"))
    text = (configs / "sweep" / "default.yaml").read_text(encoding="utf-8")
    text = text.replace("optim:\n", "optim:\n  weight_decay: ${optim.lr}\n")
    rule = "    - {when: {finetune: partial}, overrides: [++data.batch_size=32, seed=3]}\n"
    (configs / "sweep" / "own.yaml").write_text(
        text.replace("  rules:\n", f"  rules:\n{rule}"), encoding="utf-8"
    )
    return configs


@pytest.mark.parametrize("finetune", ["linear_probe", "partial", "full"])
def test_what_is_put_in_place_is_what_hydra_would_compose(own_configs: Path, finetune: str) -> None:
    plan = compose_sweep(["sweep=own", "trainer.max_epochs=7"], own_configs)
    groups = {"finetune.trainable_groups": 2} if finetune == "partial" else {}
    for lr in (0.001, 0.004):  # the second time, the arm is known
        chosen = {"finetune": finetune, **groups, "optim.lr": lr, "data.batch_size": 256}
        composed = compose_values("sweep", [*plan.overrides, *plan.trial_overrides(chosen)], own_configs)
        composed.pop("sweep")
        plan = plan.with_arm_of(chosen)
        trial = plan.compose_trial(chosen)
        assert trial == RunConfig.model_validate(composed)
        assert trial.optim.weight_decay == trial.optim.lr == lr  # type: ignore[union-attr]
        assert trial.data.batch_size == (32 if finetune == "partial" else 256)


def test_a_trial_is_what_the_sweep_read_whatever_becomes_of_the_files(own_configs: Path) -> None:
    plan = compose_sweep(["sweep=own"], own_configs)
    chosen = {"finetune": "full", "optim.lr": 0.002}
    before = plan.compose_trial(chosen)
    plan = plan.with_arm_of(chosen)
    handed = SweepPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    (own_configs / "finetune" / "full.yaml").write_text("kind: full\nbackbone_lr_scale: 0.123\n")

    assert handed.compose_trial(chosen) == before
    assert handed.arms == plan.arms != {}


def test_every_value_has_its_origin() -> None:
    overrides = ["model=lenet", "optim.lr=0.5"]
    origins = trace_origins("run", overrides)
    assert set(leaves_by_path(compose_values("run", overrides))) <= set(origins)
    assert origins["model.image_size"] == "configs/model/lenet.yaml"
    assert origins["optim.lr"] == "command line"
    assert origins["seed"] == "configs/run.yaml"


def test_the_printed_configuration_loads_as_the_resolved_one() -> None:
    resolved = compose_run(["model=lenet"]).to_dict()
    text = annotate(resolved, trace_origins("run", ["model=lenet"]))
    assert yaml.safe_load(text) == resolved
    assert "# configs/model/lenet.yaml" in text
