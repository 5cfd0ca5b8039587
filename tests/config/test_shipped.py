"""Every file under configs/ composes, validates, and says all that there is to say."""

from __future__ import annotations

from itertools import chain

import pytest

from harness.config.compose import CONFIG_DIR, compose_run, compose_sweep, compose_values, leaves_by_path
from harness.config.schema import RunConfig
from harness.config.yaml_files import groups

NEEDED = {  # files that leave a value to the user
    ("model", "timm"): ["model.name=resnet18"],
    ("optim", "timm"): ["optim.name=lion"],
    ("distill", "soft_targets"): ["distill.teacher=mine"],
}
RUN_FILES = [
    (group, name) for group, names in groups(CONFIG_DIR).items() if group != "sweep" for name in names
]
# Files that are alternatives to their group's defaults.
PRESETS = [
    ("augment", "standard"),
    ("augment", "augmix"),
    ("augment", "mix"),
    ("augment", "strong"),
    ("model", "resnet50"),
    ("trainer", "quick"),
]
SECTIONS_WITH_ALL_KEYS = ("data", "model", "finetune", "augment", "optim", "loss", "distill", "average")
SWEEP_FILES = groups(CONFIG_DIR)["sweep"]


@pytest.mark.parametrize(("group", "name"), RUN_FILES, ids=["=".join(file) for file in RUN_FILES])
def test_a_run_file_is_valid(group: str, name: str) -> None:
    pretrained = ["model=efficientnet_lite0"] if group == "finetune" else []
    compose_run([*pretrained, f"{group}={name}", *NEEDED.get((group, name), [])])


@pytest.mark.parametrize(("group", "name"), [f for f in RUN_FILES if f[0] in SECTIONS_WITH_ALL_KEYS])
def test_a_file_names_every_key_of_its_section(group: str, name: str) -> None:
    """`--print-config` can then say where each value came from, and a reader sees what can be set."""
    overrides = ["model=efficientnet_lite0", f"{group}={name}", *NEEDED.get((group, name), [])]
    said = set(leaves_by_path(compose_values("run", overrides)[group]))
    assert said == set(leaves_by_path(compose_run(overrides).to_dict()[group]))


@pytest.mark.parametrize(
    ("group", "name"), [f for f in RUN_FILES if f[0] not in ("recipe", "sweep") and f not in PRESETS]
)
def test_a_default_is_one_value_in_yaml_and_in_python(
    group: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_places(monkeypatch)
    overrides = ["model=efficientnet_lite0", f"{group}={name}", *NEEDED.get((group, name), [])]
    section = getattr(compose_run(overrides), group)
    fields = type(section).model_fields
    required = {key: getattr(section, key) for key, field in fields.items() if field.is_required()}
    assert section == type(section)(**required)


def test_a_run_without_overrides_is_a_run_config_without_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_places(monkeypatch)
    assert compose_run([]) == RunConfig()


def forget_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_DIR", "CACHE_DIR", "MLRUNS_DIR"):
        monkeypatch.delenv(name)


def test_a_recipe_wins_over_the_root_file_and_the_command_line_over_it() -> None:
    config = compose_run(["recipe=speedrun", "trainer.max_epochs=1"])
    assert (config.evaluate_test, config.evaluation.tta) == (True, "flip_shift")
    assert (config.optim.kind, config.trainer.max_epochs) == ("muon", 1)


@pytest.mark.parametrize("name", SWEEP_FILES)
def test_a_sweep_file_is_valid_in_every_corner(name: str) -> None:
    from harness.search.suggest.space import check_space

    check_space(compose_sweep([f"sweep={name}"]))


@pytest.mark.parametrize("name", SWEEP_FILES)
@pytest.mark.parametrize("finetune", ["linear_probe", "partial", "full"])
def test_the_arms_of_a_sweep_see_their_images_alike_cached_or_not(name: str, finetune: str) -> None:
    """Or the answer to which of them is best would be one about augmentation."""
    from harness.training.image_views import NEW_VIEWS, count_views, describe_regime

    config = compose_sweep([f"sweep={name}", f"finetune={finetune}"]).base
    asked = getattr(config.finetune, "feature_views", None)
    seen = describe_regime(config, count_views(config.augment, asked))["views"]

    assert seen == {"default": 1, "gpu": NEW_VIEWS}[name]


def test_no_file_is_without_a_heading() -> None:
    for file in chain(CONFIG_DIR.glob("*.yaml"), CONFIG_DIR.glob("*/*.yaml")):
        comments = [
            line for line in file.read_text(encoding="utf-8").splitlines()[:2] if line.startswith("# ")
        ]
        assert comments, f"{file} does not say what it is for"
