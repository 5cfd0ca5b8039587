"""The folder of configuration files: its groups, and faults of a single file, reported with the line.

Hydra and PyYAML report such faults in many lines and do not say how to mend them, so `hydra_adapter.py` calls
`first_fault` instead.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from harness.config.schema import RunConfig
from harness.errors import ConfigError, one_line

HEADER = "# @package _global_"
GLOBAL_GROUPS = ("sweep", "recipe")  # files of these groups set sections other than their own
SECTIONS = {*RunConfig.model_fields, "sweep"}
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "UTF-8 with a byte order mark",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def groups(config_dir: Path) -> dict[str, list[str]]:
    """Return the config groups and their options.

    Raises:
        ConfigError: there is no such folder.
    """
    try:
        folders = sorted(folder for folder in config_dir.iterdir() if folder.is_dir())
    except OSError as error:
        raise ConfigError(
            f"no configuration folder at {config_dir} ({error.strerror}): name one with --config-dir"
        ) from error
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def check_header(config_dir: Path, group: str, option: str) -> None:
    """Refuse a file of `sweep` or `recipe` that sets other sections and lacks :data:`HEADER`.

    Without the header Hydra would put `model:` in a sweep's file at `sweep.model`.

    Raises:
        ConfigError: the header is missing; the message names the file and the line to add.
    """
    file = config_dir / group / f"{option}.yaml"
    content = read_yaml(file)
    outside = sorted(key for key in content if key in SECTIONS)
    outside += ["defaults"] if any("/" in str(entry) for entry in _defaults(content)) else []
    if outside and not _has_header(file):
        raise ConfigError(
            f"{_shown(file)}: it sets {', '.join(outside)}, so its first line must be {HEADER!r}: add it"
        )


def _defaults(content: dict[Any, Any]) -> list[Any]:
    entries = content.get("defaults")
    return entries if isinstance(entries, list) else []


def _has_header(file: Path) -> bool:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            return False
        if re.match(r"\s*#\s*@package\s+\S", line):
            return True
    return False


def first_fault(files: Iterable[Path]) -> ConfigError | None:
    """Return the error of the first file that cannot be read; None if all can."""
    for file in files:
        try:
            read_yaml(file)
        except ConfigError as error:
            return error
    return None


def all_files(config_dir: Path) -> Iterator[Path]:
    """Yield the files that Hydra may read."""
    yield from sorted(config_dir.glob("*.yaml"))
    yield from sorted(config_dir.glob("*/*.yaml"))


def read_yaml(file: Path) -> dict[Any, Any]:
    """Return a file's content as it stands, read as Hydra reads it.

    Raises:
        ConfigError: the file cannot be read; the message names the line and how to mend it.
    """
    text = _text(file)
    try:
        content = yaml.load(text, get_yaml_loader())
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_fault(file, text, error)) from error
    except (RecursionError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ConfigError(f"{_shown(file)}: YAML cannot read it: {one_line(str(error))}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "one value"
        raise ConfigError(f"{_shown(file)}: it is {kind}: write lines of 'key: value'")
    return content


def _text(file: Path) -> str:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{_shown(file)} cannot be read: {error.strerror}") from error
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if raw.startswith(mark):
            raise ConfigError(f"{_shown(file)} is written in {encoding}: save it as plain UTF-8")
    if b"\0" in raw:
        raise ConfigError(f"{_shown(file)} has null bytes (binary, or UTF-16?): save it as plain UTF-8")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{_shown(file)}, line {line}: byte {raw[error.start]:#04x} is no UTF-8 (Latin-1?): "
            "save the file as UTF-8"
        ) from error


def _yaml_fault(file: Path, text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if mark is None:
        position = getattr(error, "position", None)
        line = text[:position].count("\n") if isinstance(position, int) else None
    else:
        line = mark.line
    lines = text.splitlines()
    here = lines[line] if line is not None and line < len(lines) else ""
    where = f"{_shown(file)}, line {line + 1}" if line is not None else _shown(file)
    if re.match(r"\s*\t", here) or "'\\t'" in problem:
        return f"{where}: a tab, which YAML does not take: indent with spaces"
    if twice := re.search(r"duplicate key (.*)", problem):
        return f"{where}: the key {twice[1]!r} stands twice: keep one of them"
    return f"{where}: {one_line(problem)}: {one_line(here.strip(), 60)!r}"


def _shown(file: Path) -> str:
    folder = "" if file.parent.name == "configs" else f"{file.parent.name}/"
    return f"configs/{folder}{file.name}" if file.parents[bool(folder)].name == "configs" else str(file)
