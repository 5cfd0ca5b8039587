"""The only file that composes with Hydra (`overrides.py` uses its parser); `compose.py` calls this.

Hydra keeps global state while it is initialised, so each function that composes clears it again at the end.
Overrides are checked before Hydra reads them, and Hydra's errors become a ConfigError of one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from harness.config import yaml_files
from harness.config.overrides import in_hydras_words, parse_overrides, values_of
from harness.config.validation import hydras_line
from harness.errors import ConfigError, did_you_mean

ROOT_FILES = ("run", "sweep")  # what `harness train` and `harness sweep` start from


def compose_open(root: str, overrides: Sequence[str], config_dir: Path) -> DictConfig:
    """Compose a root file with overrides; interpolations are not resolved."""
    with _hydra(root, overrides, config_dir) as lines:
        return compose(root, lines)


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return plain values, interpolations resolved.

    Raises:
        ConfigError: an interpolation of something that does not exist.
    """
    with _our_errors():
        return as_tree(config, resolve=True)


def as_tree(config: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    """Return plain values; interpolations are resolved only if `resolve`."""
    values = OmegaConf.to_container(config, resolve=resolve, throw_on_missing=resolve)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def defaults_list(root: str, overrides: Sequence[str], config_dir: Path) -> Any:
    """Return Hydra's list of the files that it merges, and the option chosen for each group."""
    with _hydra(root, overrides, config_dir) as lines:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        return hydra.config_loader.compute_defaults_list(root, lines, RunMode.RUN)


@contextmanager
def _hydra(root: str, overrides: Sequence[str], config_dir: Path) -> Iterator[list[str]]:
    """Initialise Hydra for a folder, yield the overrides in its grammar, and turn its errors into ours."""
    parsed = parse_overrides(overrides)
    lines = in_hydras_words(parsed, root, yaml_files.groups(config_dir))
    given = values_of(parsed)
    for group in yaml_files.GLOBAL_GROUPS if root == "sweep" else ("recipe",):
        if option := given.get(group, "default" if group == "sweep" else None):
            yaml_files.check_header(config_dir, group, str(option))
    used = [config_dir / f"{name}.yaml" for name in ROOT_FILES]
    used += [config_dir / group / f"{option}.yaml" for group, option in given.items() if "." not in group]
    with (
        _our_errors(config_dir, used),
        initialize_config_dir(str(config_dir.resolve()), version_base="1.3"),
    ):
        yield lines


@contextmanager
def _our_errors(config_dir: Path | None = None, used: Sequence[Path] = ()) -> Iterator[None]:
    """Turn whatever Hydra or OmegaConf raises into a ConfigError of one line.

    All exceptions are caught, since within the block Hydra and OmegaConf only read what a user wrote.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        # Hydra's message names no line. If the text of a file may be at fault, look for a fault in the files.
        is_about_text = config_dir is not None and isinstance(error, yaml.YAMLError | ValueError)
        files_read = [*used, *(yaml_files.all_files(config_dir) if config_dir and is_about_text else ())]
        fault = yaml_files.first_fault(file for file in files_read if file.is_file())
        raise fault or ConfigError(_missing_file(error, config_dir) or hydras_line(error)) from error


def _missing_file(error: Exception, config_dir: Path | None) -> str | None:
    """Return the message for a defaults list that names a missing file; None for other errors."""
    found = re.match(r"In '([^']*)': Could not (?:find|load) '([^'/]*)/([^']*)'", str(error))
    if found is None or config_dir is None:
        return None
    group, option = found.groups()[1:]
    known = yaml_files.groups(config_dir).get(group, [])
    hint = did_you_mean(option, known)
    return f"no file configs/{group}/{option}.yaml, which a list of defaults names{hint}"
