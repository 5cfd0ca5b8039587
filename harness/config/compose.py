"""Composes `configs/` and overrides into a validated configuration, and traces the origin of each value.

Hydra composes (groups, defaults lists, override grammar); pydantic validates. Hydra's global
state is cleared after each composition.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.config import yaml_files
from harness.config.arms import arm_values, without_foreign
from harness.config.hydra_adapter import as_tree, compose_open, defaults_list, resolved
from harness.config.multilabel import check_metric, default_metric
from harness.config.overrides import as_override_value, as_setting, parse_overrides, path_of, values_of
from harness.config.schema import RunConfig
from harness.config.space import Scalar, SearchSpace, holds
from harness.config.space_overrides import edit_space, without_fixed
from harness.config.sweep import SweepConfig
from harness.config.validation import validate
from harness.errors import ConfigError, did_you_mean

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
TRIAL_OVERRIDES = ("evaluate_test=false",)  # of every trial: selection sees the validation split only


@dataclass(frozen=True)
class SweepPlan:
    """A sweep's validated configuration: its section `sweep`, the run it starts from, and the overrides.

    An arm is one choice of config files (groups) with the rules that then hold. Hydra composes each arm once.
    A trial's other values are then set in its composed arm, which is much faster than composing again.

    Args:
        sweep: The section `sweep`: space, rules, objective, budget.
        base: The run that every trial starts from.
        overrides: What the user gave on the command line.
        config_dir: The folder of configuration files.
        sweep_file: Name of the file in `configs/sweep/`.
        arms: What Hydra composed for each arm, by the arm's overrides; interpolations are not resolved.
            Filled by `with_arm_of`; an arm that is missing is composed whenever a trial needs it.
    """

    sweep: SweepConfig
    base: RunConfig
    overrides: tuple[str, ...]
    config_dir: Path
    sweep_file: str
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def public_overrides(self) -> list[str]:
        """The overrides without the database's address, which may hold a password."""
        return [text for text in self.overrides if path_of(text) != "sweep.storage"]

    @property
    def config_dir_option(self) -> list[str]:
        """The option of a command that names the folder of config groups, where that is not the usual one."""
        return [] if self.config_dir == CONFIG_DIR else ["--config-dir", str(self.config_dir)]

    @property
    def arm_values(self) -> dict[str, Any]:
        """The command line's values for keys of searched groups, see `harness.config.arms`."""
        return arm_values(self.sweep, self.overrides, self.config_dir)

    def trial_overrides(self, chosen: Mapping[str, Scalar]) -> list[str]:
        """Return a trial's overrides as text: its values, the rules that hold, and `TRIAL_OVERRIDES`.

        Args:
            chosen: The trial's value for each dimension of the space that applies to it.
        """
        return [f"{path}={as_override_value(value)}" for path, value in chosen.items()] + self._added(chosen)

    def arm_of(self, chosen: Mapping[str, Scalar]) -> list[str]:
        """Return the overrides that make a trial's arm: its files, and what rules set outside the space."""
        groups = yaml_files.groups(self.config_dir)
        files = [f"{path}={as_override_value(value)}" for path, value in chosen.items() if path in groups]
        return files + [text for text in self._added(chosen) if not self._is_searched_value(text, groups)]

    def with_arm_of(self, chosen: Mapping[str, Scalar]) -> SweepPlan:
        """Return this plan with the arm of a trial composed; the plan itself if that is composed already.

        Raises:
            ConfigError: a file or a key that does not exist.
        """
        arm = self.arm_of(chosen)
        if " ".join(arm) in self.arms:
            return self
        return replace(self, arms={**self.arms, " ".join(arm): self._compose_arm(arm)})

    def compose_trial(self, chosen: Mapping[str, Scalar]) -> RunConfig:
        """Return the run of one trial.

        Args:
            chosen: The trial's value for each dimension of the space that applies to it.

        Raises:
            ConfigError: a key that does not exist, or a value that a run may not have.
        """
        arm, groups = self.arm_of(chosen), yaml_files.groups(self.config_dir)
        config = OmegaConf.create(dict(self.arms.get(" ".join(arm)) or self._compose_arm(arm)))
        values = {path: as_setting(path, value) for path, value in chosen.items() if path not in groups}
        # A rule may set a searched key; its value replaces the one that was chosen.
        of_rules = [text for text in self._added(chosen) if self._is_searched_value(text, groups)]
        for path, value in [*values.items(), *values_of(parse_overrides(of_rules)).items()]:
            OmegaConf.update(config, path, value, force_add=True)
        OmegaConf.update(config, "trainer.monitor", self.sweep.monitor.model_dump(), force_add=True)
        return validate(RunConfig, resolved(config))

    def _compose_arm(self, arm: Sequence[str]) -> dict[str, Any]:
        lines = [*self.overrides, *arm, f"trainer.devices={self.sweep.devices_per_trial}"]
        composed = as_tree(compose_open("sweep", lines, self.config_dir))
        composed.pop("sweep")
        return without_foreign(composed, self.arm_values)

    def _added(self, chosen: Mapping[str, Scalar]) -> list[str]:
        """Return the overrides of the rules that hold, but for keys the user set, and TRIAL_OVERRIDES."""
        fixed = {path_of(text) for text in self.overrides}
        rules = [rule for rule in self.sweep.rules if holds(rule.when, dict(chosen))]
        texts = [text for rule in rules for text in rule.overrides]
        return [*(text for text in texts if path_of(text) not in fixed), *TRIAL_OVERRIDES]

    def _is_searched_value(self, override: str, groups: Container[str]) -> bool:
        path = path_of(override)
        return path in self.sweep.space and path not in groups

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, from which a trial's process restores the plan without composing it."""
        return {
            "sweep": self.sweep.model_dump(mode="json"),
            "base": self.base.to_dict(),
            "overrides": list(self.overrides),
            "config_dir": str(self.config_dir.resolve()),
            "sweep_file": self.sweep_file,
            "arms": dict(self.arms),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepPlan:
        return cls(
            sweep=validate(SweepConfig, values["sweep"], prefix="sweep"),
            base=validate(RunConfig, values["base"]),
            overrides=tuple(values["overrides"]),
            config_dir=Path(values["config_dir"]),
            sweep_file=values["sweep_file"],
            arms=values["arms"],
        )


def compose_run(overrides: Sequence[str] = (), config_dir: Path = CONFIG_DIR) -> RunConfig:
    """Return the validated configuration of one run.

    Raises:
        ConfigError: an unknown key or group, or a value out of its range.
    """
    return validate(RunConfig, compose_values("run", overrides, config_dir))


def compose_sweep(overrides: Sequence[str] = (), config_dir: Path = CONFIG_DIR) -> SweepPlan:
    """Return the validated plan of a sweep. A searched key that is overridden is fixed: it leaves the space.

    Raises:
        ConfigError: an unknown key or group, or a value out of its range.
    """
    parsed = parse_overrides(overrides)
    given = values_of(parsed)
    composed = as_tree(compose_open("sweep", overrides, config_dir))
    if "sweep" not in composed:
        file = f"configs/sweep/{given.get('sweep', 'default')}.yaml"
        raise ConfigError(f"{file} has no section `sweep:` with a space")
    before = _searched(composed["sweep"])
    if isinstance(composed["sweep"], dict):
        composed["sweep"] = edit_space(composed["sweep"], parsed)
    gone = before - _searched(composed["sweep"])
    values = resolved(OmegaConf.create(composed))
    unsearched = _base_values(values, gone, overrides, config_dir) | given
    asked = _with_metric(values.pop("sweep"), values["data"])
    sweep = validate(SweepConfig, _settled(asked, unsearched), prefix="sweep")
    _check_paths(sweep, config_dir)
    base = validate(RunConfig, without_foreign(values, arm_values(sweep, overrides, config_dir)))
    base = _judged(base, sweep)
    if base.trainer.devices != 1 or "trainer.devices" in sweep.space:
        raise ConfigError("trainer.devices is for single runs: in a sweep, set sweep.devices_per_trial")
    if base.data.train_on_val or "data.train_on_val" in sweep.space:
        raise ConfigError("data.train_on_val leaves no images to compare trials by: it is for single runs")
    return SweepPlan(
        sweep=sweep,
        base=base,
        overrides=tuple(overrides),
        config_dir=config_dir,
        sweep_file=str(given.get("sweep", "default")),
    )


def _with_metric(section: Any, data: Any) -> Any:
    """Return a sweep's section with the metric that suits its images, where it names none."""
    if not isinstance(section, Mapping) or not isinstance(data, Mapping) or section.get("metric") is not None:
        return section
    return {**section, "metric": default_metric(data.get("kind"))}


def _searched(section: Any) -> set[str]:
    space = section.get("space") if isinstance(section, Mapping) else None
    return set(space) if isinstance(space, Mapping) else set()


def _base_values(
    values: Mapping[str, Any], paths: set[str], overrides: Sequence[str], config_dir: Path
) -> dict[str, Any]:
    """Return the values of the keys that the command line took out of the space."""
    if not paths:
        return {}
    known = defaults_list("sweep", overrides, config_dir).overrides.known_choices
    return {path: known[path] if path in known else leaves_by_path(values).get(path) for path in paths}


def _settled(section: Any, given: Mapping[str, Any]) -> Any:
    """Return a sweep's section without the searched keys that the user fixed; one trial if none is left."""
    if not isinstance(section, Mapping):
        return section  # the schema refuses it
    asked = {key: value for key, value in section.items() if key in SearchSpace.model_fields}
    try:
        left = without_fixed(validate(SearchSpace, asked, prefix="sweep"), given)
    except ValueError as error:
        raise ConfigError(f"sweep: {error}") from None
    is_one = not left["space"] and "sweep.num_trials" not in given
    return {**section, **left, **({"num_trials": 1} if is_one else {})}


def compose_values(root: str, overrides: Sequence[str], config_dir: Path = CONFIG_DIR) -> dict[str, Any]:
    """Compose a root file (`run` or `sweep`) with overrides; untyped, interpolations resolved.

    Raises:
        ConfigError: text that is no override, or a group's file that does not exist.
    """
    return resolved(compose_open(root, overrides, config_dir))


def trace_origins(root: str, overrides: Sequence[str], config_dir: Path = CONFIG_DIR) -> dict[str, str]:
    """Return, for each dotted path that anything sets, the file that set it last, or "command line"."""
    origins: dict[str, str] = {}
    for file, package in _files_in_order(root, overrides, config_dir):
        content = OmegaConf.load(config_dir / file)
        assert isinstance(content, DictConfig)
        content.pop("defaults", None)
        prefix = f"{package}." if package and package != "_global_" else ""
        for path in leaves_by_path(OmegaConf.to_container(content, resolve=False)):
            origins[prefix + path] = f"configs/{file}"
    return origins | {override.key_or_group: "command line" for override in parse_overrides(overrides)}


def _judged(base: RunConfig, sweep: SweepConfig) -> RunConfig:
    """Return the base with the sweep's metric as its monitor: one metric must decide about all trials.

    Raises:
        ConfigError: the base has another monitor, or the space or a rule sets one.
    """
    set_by_trials = [*sweep.space, *(path_of(text) for rule in sweep.rules for text in rule.overrides)]
    monitor = base.trainer.monitor
    try:
        check_metric(sweep.metric, base.data.kind, "sweep.metric")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    is_other = monitor.metric not in (default_metric(base.data.kind), sweep.metric)
    if is_other or any(path.startswith("trainer.monitor") for path in set_by_trials):
        raise ConfigError(
            "trainer.monitor is for single runs: a sweep's trials are all judged by sweep.metric "
            f"(now {sweep.metric}), so set that"
        )
    trainer = base.trainer.model_copy(update={"monitor": sweep.monitor})
    return base.model_copy(update={"trainer": trainer})


def _check_paths(sweep: SweepConfig, config_dir: Path) -> None:
    """Make sure that the values of a searched group are files of that group."""
    known = yaml_files.groups(config_dir)
    for path, dimension in sweep.space.items():
        if path in known and dimension.type != "choice":
            raise ConfigError(f"sweep.space.{path} is a config group: search it with type: choice")
        for value in getattr(dimension, "values", []) if path in known else []:
            if value not in known[path]:
                raise ConfigError(
                    f"sweep.space.{path}: no file {value!r}" + did_you_mean(str(value), known[path])
                )


def _files_in_order(root: str, overrides: Sequence[str], config_dir: Path) -> list[tuple[str, str]]:
    """Return (file, package) of every file that Hydra merges, first to last."""
    defaults = defaults_list(root, overrides, config_dir).defaults
    named = [(f"{entry.config_path}.yaml", entry.package or "") for entry in defaults if entry.config_path]
    return [(file, package) for file, package in named if (config_dir / file).is_file()]  # not Hydra's own


def leaves_by_path(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as dotted paths to leaves (lists and empty mappings are leaves)."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(leaves_by_path(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
