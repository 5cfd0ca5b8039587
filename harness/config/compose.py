"""From `configs/` and command-line overrides to a validated configuration, with where each value came from.

Hydra composes (groups, defaults lists, override grammar); pydantic validates. No Hydra state outlives a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.config import files
from harness.config.arms import arm_values, without_foreign
from harness.config.hydra_door import as_tree, compose_open, defaults_list, resolved
from harness.config.monitor import BY_ACCURACY
from harness.config.overrides import parse_overrides, path_of, values_of
from harness.config.problems import validate
from harness.config.schema import RunConfig
from harness.config.space import SearchSpace
from harness.config.space_edits import edit_space, without_fixed
from harness.config.sweep import SweepConfig
from harness.errors import ConfigError, did_you_mean

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep as asked for: its configuration, the run it starts from, and the overrides that made both."""

    sweep: SweepConfig
    base: RunConfig
    overrides: tuple[str, ...]
    config_dir: Path
    sweep_file: str
    # What Hydra has composed for trials, by the overrides that it alone can apply; interpolations open.
    arms: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def public_overrides(self) -> list[str]:
        """The overrides without the database's address, which may hold a password."""
        return [text for text in self.overrides if path_of(text) != "sweep.storage"]

    @property
    def arm_values(self) -> dict[str, Any]:
        """What was given for keys of searched groups, see :func:`arm_values`."""
        return arm_values(self.sweep, self.overrides, self.config_dir)

    def compose_trial(self, overrides: Sequence[str]) -> RunConfig:
        """Return the run of one trial: the sweep's base with the trial's overrides on top.

        Hydra composes each arm once (groups chosen, rules that hold), for all processes that are handed this
        plan. What else the space chose is put in place, which spares a trial most of what Hydra costs.
        """
        makes_arm, values = self.split_overrides(overrides)
        arm = " ".join(makes_arm)
        if arm not in self.arms:
            lines = [*self.overrides, *makes_arm, f"trainer.devices={self.sweep.devices_per_trial}"]
            composed = as_tree(compose_open("sweep", lines, self.config_dir))
            composed.pop("sweep")
            self.arms[arm] = without_foreign(composed, self.arm_values)
        config = OmegaConf.create(self.arms[arm])
        for override in parse_overrides(values):
            OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
        OmegaConf.update(config, "trainer.monitor", self.sweep.monitor.model_dump(), force_add=True)
        return validate(RunConfig, resolved(config))

    def split_overrides(self, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the overrides that make a trial's arm, for Hydra, and those that just set a value."""
        searched = set(self.sweep.space) - set(files.groups(self.config_dir))
        return (
            [text for text in overrides if path_of(text) not in searched],
            [text for text in overrides if path_of(text) in searched],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: a trial's process need not compose the sweep again."""
        return {
            "sweep": self.sweep.model_dump(mode="json"),
            "base": self.base.to_dict(),
            "overrides": list(self.overrides),
            "config_dir": str(self.config_dir.resolve()),
            "sweep_file": self.sweep_file,
            "arms": self.arms,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepPlan:
        plan = cls(
            sweep=validate(SweepConfig, values["sweep"], prefix="sweep"),
            base=validate(RunConfig, values["base"]),
            overrides=tuple(values["overrides"]),
            config_dir=Path(values["config_dir"]),
            sweep_file=values["sweep_file"],
        )
        plan.arms.update(values["arms"])
        return plan


def compose_run(overrides: Sequence[str] = (), config_dir: Path = CONFIG_DIR) -> RunConfig:
    """Return the validated configuration of one run.

    Raises:
        ConfigError: an unknown key or group, or a value out of its range.
    """
    return validate(RunConfig, compose_values("run", overrides, config_dir))


def compose_sweep(overrides: Sequence[str] = (), config_dir: Path = CONFIG_DIR) -> SweepPlan:
    """Return the validated plan of a sweep. A searched path that is overridden leaves the space: it is fixed.

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
    sweep = validate(SweepConfig, _settled(values.pop("sweep"), unsearched), prefix="sweep")
    _check_paths(sweep, config_dir)
    base = validate(RunConfig, without_foreign(values, arm_values(sweep, overrides, config_dir)))
    base = _judged(base, sweep)
    if base.trainer.devices != 1 or "trainer.devices" in sweep.space:
        raise ConfigError("trainer.devices is for single runs: in a sweep, set sweep.devices_per_trial")
    return SweepPlan(
        sweep=sweep,
        base=base,
        overrides=tuple(overrides),
        config_dir=config_dir,
        sweep_file=str(given.get("sweep", "default")),
    )


def _searched(section: Any) -> set[str]:
    space = section.get("space") if isinstance(section, Mapping) else None
    return set(space) if isinstance(space, Mapping) else set()


def _base_values(
    values: Mapping[str, Any], paths: set[str], overrides: Sequence[str], config_dir: Path
) -> dict[str, Any]:
    """Return the one value that paths have which the command line took out of the space."""
    if not paths:
        return {}
    known = defaults_list("sweep", overrides, config_dir).overrides.known_choices
    return {path: known[path] if path in known else flatten(values).get(path) for path in paths}


def _settled(section: Any, given: Mapping[str, Any]) -> Any:
    """Return a sweep's section without what the user fixed; a space that is fixed whole is one trial."""
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
        for path in flatten(OmegaConf.to_container(content, resolve=False)):
            origins[prefix + path] = f"configs/{file}"
    return origins | {override.key_or_group: "command line" for override in parse_overrides(overrides)}


def _judged(base: RunConfig, sweep: SweepConfig) -> RunConfig:
    """Return the base with the sweep's metric as its monitor: trials must not be judged by different ones.

    Raises:
        ConfigError: it has another monitor, or trials would have.
    """
    set_by_trials = [*sweep.space, *(path_of(text) for rule in sweep.rules for text in rule.overrides)]
    monitor = base.trainer.monitor
    is_other = monitor not in (BY_ACCURACY, sweep.monitor)
    if is_other or any(path.startswith("trainer.monitor") for path in set_by_trials):
        raise ConfigError(
            "trainer.monitor is for single runs: a sweep's trials are all judged by sweep.metric "
            f"(now {sweep.metric}), so set that"
        )
    trainer = base.trainer.model_copy(update={"monitor": sweep.monitor})
    return base.model_copy(update={"trainer": trainer})


def _check_paths(sweep: SweepConfig, config_dir: Path) -> None:
    """A searched group's values must be files of it."""
    known = files.groups(config_dir)
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


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as dotted paths to leaves (lists and empty mappings are leaves)."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
