"""The grammar of the command line: Hydra's overrides (`group=file`, `a.b=value`), parsed and checked.

`compose.py` calls `parse_overrides`; `hydra_adapter.py` passes the result on to Hydra. Parts of Hydra's
grammar that mean nothing here (lists of values to sweep over, packages, Hydra's own settings) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from harness.config.dotted_paths import is_text
from harness.errors import ConfigError, did_you_mean, one_line

OPTIONAL_GROUPS = ("recipe",)  # the groups that a run can be without
SPACE = "sweep.space"


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse Hydra's override grammar (`group=file`, `a.b=value`); for a key of text, a number stays text.

    Raises:
        ConfigError: text that is no override.
    """
    return [_parse(text) for text in overrides]


def _parse(text: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(text)
        value = override.value()
    except (HydraException, ValueError, RecursionError) as error:
        raise ConfigError(_unreadable(text)) from error
    key = override.key_or_group
    if not key.strip():
        raise ConfigError(f"the override {one_line(text)!r} names no key: write key=value")
    if override.is_sweep_override():
        raise ConfigError(f"{one_line(text)!r} is a list of values: searches are written in configs/sweep/")
    if isinstance(value, bool | int | float) and is_text(key):
        written = text.partition("=")[2].strip()
        return OverridesParser.create().parse_override(
            f"{text.partition('=')[0]}={as_override_value(written)}"
        )
    return override


def _unreadable(text: str) -> str:
    if "=" not in text:
        return f"cannot read {one_line(text)!r}: settings are written key=value, options --name"
    return (
        f"cannot read the override {one_line(text)!r}: write key=value, with quotes around a value that has "
        f'special characters, as in "\'data.dir=\\"my images\\"\'"'
    )


def path_of(override: str) -> str:
    """Return the dotted path, or the group, that an override sets."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0].strip()


def as_override_value(value: bool | int | float | str | None) -> str:
    """Return a value as text in Hydra's override grammar; parsing it gives the same value and type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return repr(value)
    if (
        value.isascii()
        and value.isidentifier()
        and value.lower() not in ("true", "false", "null", "none", "nan", "inf")
    ):
        return value
    # Within quotes, Hydra takes backslashes literally unless a quote follows them.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def as_setting(path: str, value: bool | int | float | str | None) -> bool | int | float | str | None:
    """Return a value for a key as the command line would give it: if the key takes text, a number is text."""
    if isinstance(value, bool | int | float) and is_text(path):
        return as_override_value(value)
    return value


def in_hydras_words(parsed: Sequence[Override], root: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the overrides in the form that Hydra is given: groups as they are, values with `++`.

    With `++`, `a.b=value` may set a key that no YAML file has; the schema decides whether it is valid.
    Overrides of the sweep's space are left out, see :mod:`harness.config.space_overrides`.

    Raises:
        ConfigError: a file that its group does not have, or an override that has no meaning here.
    """
    lines = []
    for override in parsed:
        key, text = override.key_or_group, override.input_line
        assert text is not None
        if root == "run" and (key == "sweep" or key.startswith("sweep.")):
            raise ConfigError(f"{one_line(text)} belongs to a sweep: use `harness sweep`")
        if key == SPACE or key.startswith(f"{SPACE}."):
            continue
        if key in groups:
            lines += _group_line(override, groups[key])
        elif key.startswith(("hydra.", "hydra/")) or key in ("hydra", "defaults"):
            raise ConfigError(f"{key}: Hydra's own settings mean nothing here: leave it out")
        elif "/" in key or override.package is not None:
            near = did_you_mean(key.partition("/")[0], groups)
            raise ConfigError(f"{one_line(text)!r} names no group of files{near}")
        else:
            lines.append(text if override.is_delete() else f"++{text.lstrip('+')}")
    return lines


def _group_line(override: Override, options: Sequence[str]) -> list[str]:
    group, value = override.key_or_group, override.value()
    if override.package is not None:
        raise ConfigError(f"{override.input_line!r}: write {group}=FILE, without '@{override.package}'")
    if override.is_delete() or value is None:
        if group in OPTIONAL_GROUPS:
            return []
        asked = f"~{group}" if override.is_delete() else f"{group}=null"
        raise ConfigError(f"{asked}: it cannot be left out; valid here: {', '.join(options)}")
    if isinstance(value, list) or str(value) not in options:
        shown = one_line(str(override.input_line).lstrip("+").partition("=")[2])
        hint = did_you_mean(str(value), options)
        raise ConfigError(f"{group}={shown}: no such file in configs/{group}{hint}")
    return [f"{group}={value}"]


def values_of(parsed: Sequence[Override]) -> dict[str, Any]:
    """Return the value that was given last for each dotted path or group; deletions are ignored."""
    return {override.key_or_group: override.value() for override in parsed if not override.is_delete()}
