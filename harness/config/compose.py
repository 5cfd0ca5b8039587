"""From `configs/` and command-line overrides to a validated configuration, with where each value came from.

Hydra composes (groups, defaults lists, override grammar); pydantic validates. No Hydra state outlives a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.problems import validate
from harness.config.schema import RunConfig
from harness.config.space import without_fixed
from harness.config.sweep import SweepConfig
from harness.errors import ConfigError, did_you_mean

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
ROOT_FILES = ("run", "sweep")  # what `harness train` and `harness sweep` start from


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

    def compose_trial(self, overrides: Sequence[str]) -> RunConfig:
        """Return the run of one trial: the sweep's base with the trial's overrides on top.

        Hydra composes each arm once (groups chosen, rules that hold), for all processes that are handed this
        plan. What else the space chose is put in place, which spares a trial most of what Hydra costs.
        """
        makes_arm, values = self.split_overrides(overrides)
        arm = " ".join(makes_arm)
        if arm not in self.arms:
            lines = [*self.overrides, *makes_arm, f"trainer.devices={self.sweep.devices_per_trial}"]
            composed = OmegaConf.to_container(_compose("sweep", lines, self.config_dir))
            assert isinstance(composed, dict)
            composed.pop("sweep")
            self.arms[arm] = composed
        config = OmegaConf.create(self.arms[arm])
        for override in parse_overrides(values):
            OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
        return validate(RunConfig, _resolved(config))

    def split_overrides(self, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the overrides that make a trial's arm, for Hydra, and those that just set a value."""
        searched = set(self.sweep.space) - set(groups(self.config_dir))
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
    values = compose_values("sweep", overrides, config_dir)
    section = values.pop("sweep")
    given = {override.key_or_group: override.value() for override in parse_overrides(overrides)}
    if isinstance(section, dict) and isinstance(section.get("space"), dict):
        section = without_fixed(section, given)
    sweep = validate(SweepConfig, section, prefix="sweep")
    _check_paths(sweep, config_dir)
    base = validate(RunConfig, values)
    if base.trainer.devices != 1 or "trainer.devices" in sweep.space:
        raise ConfigError("trainer.devices is for single runs: in a sweep, set sweep.devices_per_trial")
    return SweepPlan(
        sweep=sweep,
        base=base,
        overrides=tuple(overrides),
        config_dir=config_dir,
        sweep_file=str(given.get("sweep", "default")),
    )


def compose_values(root: str, overrides: Sequence[str], config_dir: Path = CONFIG_DIR) -> dict[str, Any]:
    """Compose a root file (`run` or `sweep`) with overrides; untyped, interpolations resolved.

    Raises:
        ConfigError: text that is no override, or a group's file that does not exist.
    """
    return _resolved(_compose(root, overrides, config_dir))


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


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse Hydra's override grammar (`group=file`, `a.b=value`).

    Raises:
        ConfigError: text that is no override.
    """
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
            override.value()
        except (HydraException, ValueError) as error:
            raise ConfigError(
                f"cannot read the override {text!r}: write key=value, with quotes around a value that has "
                f'special characters, as in "\'data.dir=\\"my images\\"\'"'
            ) from error
        if override.is_sweep_override():
            raise ConfigError(f"{text!r} is a list of values: searches are written in configs/sweep/")
        parsed.append(override)
    return parsed


def path_of(override: str) -> str:
    """Return the dotted path, or the group, that an override is about."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0].strip()


def groups(config_dir: Path = CONFIG_DIR) -> dict[str, list[str]]:
    """Return the config groups and their options."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(config_dir.iterdir())
        if folder.is_dir()
    }


def _compose(root: str, overrides: Sequence[str], config_dir: Path) -> DictConfig:
    with _hydra(overrides, config_dir) as lines:
        return compose(root, lines)


def _resolved(config: DictConfig) -> dict[str, Any]:
    """Return plain values, interpolations resolved.

    Raises:
        ConfigError: an interpolation of something that does not exist.
    """
    with _our_errors():
        values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _check_groups(parsed: Sequence[Override], config_dir: Path) -> None:
    if not config_dir.is_dir():
        raise ConfigError(f"no configuration folder at {config_dir}: name one with --config-dir")
    known = groups(config_dir)
    for override in parsed:
        group, value = override.key_or_group, override.value()
        if group not in known or override.is_delete() or value is None:
            continue
        for option in value if isinstance(value, list) else [value]:
            if str(option) not in known[group]:
                raise ConfigError(
                    f"{group}={option}: no such file in configs/{group}"
                    + did_you_mean(str(option), known[group])
                )


def _forced(override: Override, config_dir: Path) -> str:
    """Let a plain `a.b=value` also set a key that the YAML leaves out; the schema judges it."""
    assert override.input_line is not None
    is_plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    return (
        f"++{override.input_line}"
        if is_plain and override.key_or_group not in groups(config_dir)
        else override.input_line
    )


def _check_paths(sweep: SweepConfig, config_dir: Path) -> None:
    """A searched group's values must be files of it."""
    known = groups(config_dir)
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
    with _hydra(overrides, config_dir) as lines:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        defaults = hydra.config_loader.compute_defaults_list(root, lines, RunMode.RUN).defaults
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


@contextmanager
def _hydra(overrides: Sequence[str], config_dir: Path) -> Iterator[list[str]]:
    """Open Hydra on a folder, checked and with the overrides in its own words; its faults become ours."""
    parsed = parse_overrides(overrides)
    _check_groups(parsed, config_dir)
    with _our_errors(), initialize_config_dir(config_dir=str(config_dir.resolve()), version_base="1.3"):
        yield [_forced(override, config_dir) for override in parsed]


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).strip().splitlines()[0]) from error
