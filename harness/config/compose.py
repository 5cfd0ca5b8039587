"""From `configs/` and command-line overrides to a validated configuration, with where each value came from.

Hydra composes (groups, defaults lists, override grammar); pydantic validates. No Hydra state outlives a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.problems import validate
from harness.config.schema import RunConfig
from harness.config.sweep import SweepConfig
from harness.errors import ConfigError, did_you_mean

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
ROOT_FILES = ("run", "sweep")  # what `harness train` and `harness sweep` start from


@dataclass(frozen=True)
class Composition:
    """An untyped configuration and the origin of each of its values."""

    values: dict[str, Any]
    origins: dict[str, str]  # dotted path -> "model/lenet.yaml" or "command line"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep as asked for: its configuration, the run it starts from, and the overrides that made both."""

    sweep: SweepConfig
    base: RunConfig
    overrides: tuple[str, ...]
    config_dir: Path
    sweep_file: str

    def compose_trial(self, overrides: Sequence[str]) -> RunConfig:
        """Return the run of one trial: the sweep's base with the trial's overrides on top."""
        values = compose_values("sweep", [*self.overrides, *overrides], self.config_dir).values
        values.pop("sweep")
        return validate(RunConfig, values)


def compose_run(overrides: Sequence[str] = (), config_dir: Path = CONFIG_DIR) -> RunConfig:
    """Return the validated configuration of one run.

    Raises:
        ConfigError: an unknown key or group, or a value out of its range.
    """
    return validate(RunConfig, compose_values("run", overrides, config_dir).values)


def compose_sweep(overrides: Sequence[str] = (), config_dir: Path = CONFIG_DIR) -> SweepPlan:
    """Return the validated plan of a sweep. A searched path that is overridden leaves the space: it is fixed.

    Raises:
        ConfigError: an unknown key or group, or a value out of its range.
    """
    values = compose_values("sweep", overrides, config_dir).values
    section = values.pop("sweep")
    parsed = parse_overrides(overrides)
    fixed = {override.key_or_group for override in parsed}
    if isinstance(section, dict) and isinstance(section.get("space"), dict):
        section["space"] = _without_fixed(section["space"], fixed)
    chosen = [o.value() for o in parsed if o.key_or_group == "sweep"]
    sweep = validate(SweepConfig, section, prefix="sweep")
    _check_paths(sweep, config_dir)
    return SweepPlan(
        sweep=sweep,
        base=validate(RunConfig, values),
        overrides=tuple(overrides),
        config_dir=config_dir,
        sweep_file=str(chosen[-1]) if chosen else "default",
    )


def compose_values(root: str, overrides: Sequence[str], config_dir: Path = CONFIG_DIR) -> Composition:
    """Compose a root file (`run` or `sweep`) with overrides, untyped, with the origin of every value."""
    parsed = parse_overrides(overrides)
    _check_groups(parsed, config_dir)
    with _hydra(config_dir):
        try:
            config = compose(root, [_forced(override, config_dir) for override in parsed])
            values = OmegaConf.to_container(config, resolve=True)
            files = _files_in_order(root, parsed, config_dir)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_first_line(error)) from error
    assert isinstance(values, dict)
    return Composition(
        {str(key): value for key, value in values.items()}, _origins(files, parsed, config_dir)
    )


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


def groups(config_dir: Path = CONFIG_DIR) -> dict[str, list[str]]:
    """Return the config groups and their options."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(config_dir.iterdir())
        if folder.is_dir()
    }


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


def _without_fixed(space: Mapping[str, Any], fixed: set[str]) -> dict[str, Any]:
    """Drop what the user fixed, and what hangs on a choice that is no longer made."""
    kept: dict[str, Any] = {}
    for path, dimension in space.items():
        needs = dimension.get("when", {}) if isinstance(dimension, dict) else {}
        if path not in fixed and all(name in kept for name in needs):
            kept[path] = dimension
    return kept


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


def _files_in_order(root: str, parsed: Sequence[Override], config_dir: Path) -> list[tuple[str, str]]:
    """Return (file, package) of every file that Hydra merges, first to last."""
    from hydra.types import RunMode

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    lines = [_forced(override, config_dir) for override in parsed]
    defaults = hydra.config_loader.compute_defaults_list(root, lines, RunMode.RUN).defaults
    return [
        (f"{entry.config_path}.yaml", entry.package or "")
        for entry in defaults
        if entry.config_path and not entry.config_path.startswith("hydra")
    ]


def _origins(
    files: Sequence[tuple[str, str]], parsed: Sequence[Override], config_dir: Path
) -> dict[str, str]:
    origins: dict[str, str] = {}
    for file, package in files:
        if not (config_dir / file).is_file():
            continue  # Hydra's own
        content = OmegaConf.load(config_dir / file)
        assert isinstance(content, DictConfig)
        content.pop("defaults", None)
        for path in flatten(OmegaConf.to_container(content, resolve=False)):
            origins[f"{package}.{path}" if package and package != "_global_" else path] = f"configs/{file}"
    for override in parsed:
        origins[override.key_or_group] = "command line"
    return origins


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as dotted paths to leaves (lists and empty mappings are leaves)."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


@contextmanager
def _hydra(config_dir: Path) -> Iterator[None]:
    with initialize_config_dir(config_dir=str(config_dir.resolve()), version_base="1.3"):
        yield


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
