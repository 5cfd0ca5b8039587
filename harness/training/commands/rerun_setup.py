"""What `harness rerun` trains a recorded run with: which code, which settings, and what differs from then.

`rerun.py` calls `find_code` and `settle`; each says, in lines for people, what is not as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.compose import leaves_by_path
from harness.config.overrides import parse_overrides
from harness.config.schema import RunConfig, TrackingConfig, TrainerConfig
from harness.config.validation import validate
from harness.errors import ConfigError, RerunError, did_you_mean
from harness.tracking import names
from harness.tracking.artifacts import RecordedCode
from harness.tracking.checkout import PACKAGE, code_aside, read_checkout, source_digest
from harness.tracking.environment import Environment
from harness.tracking.runs import RunRecord
from harness.training.devices.machine import resolve_machine

# What may be given anew: where things lie, and on what to train.
MAY_CHANGE = ("data.dir", "data.cache_dir", "trainer.device", "trainer.precision", "trainer.threads")


@dataclass(frozen=True)
class Code:
    """The code that a rerun trains with."""

    package: Path  # the folder `harness`
    words: str  # which code that is
    differences: tuple[str, ...] = ()


@contextmanager
def find_code(recorded: RecordedCode, *, here: bool) -> Iterator[Code]:
    """Yield the code of a recorded run: where it is this program's, that; otherwise put aside meanwhile.

    Args:
        here: take this program's code whatever the run's was.

    Raises:
        RerunError: the code is not recorded, or cannot be put aside.
    """
    environment = recorded.environment
    digest, checkout = environment.get("code") or "", environment.get("checkout")
    then = _describe(checkout)
    if digest and digest == source_digest():
        yield Code(PACKAGE, f"as it is here: file by file that of the run ({then})")
        return
    if here:
        now = read_checkout(PACKAGE)
        words = _describe(None if now is None else {"commit": now.commit, "is_dirty": now.is_dirty})
        yield Code(PACKAGE, f"as it is here (--here): {words}", (f"code: {then} then, {words} now",))
        return
    if not checkout:
        raise RerunError(
            "the run's code was in no git checkout, and is not that of this program: "
            "--here trains with the code as it is now"
        )
    untracked = checkout.get("untracked") or []
    if checkout["is_dirty"] and not recorded.patch and not untracked:
        raise RerunError(
            f"the run was trained with uncommitted changes of commit {checkout['commit'][:12]} that were not "
            "recorded: --here trains with the code as it is now"
        )
    with code_aside(checkout["commit"], recorded.patch) as folder:
        package = folder / PACKAGE.name
        sources = [path for path in untracked if path.startswith(f"{PACKAGE.name}/")]
        differences: tuple[str, ...] = ()
        if digest and source_digest(package) != digest:
            differences = (f"code: {then}, put aside, is not file by file what ran then",)
        elif not digest and sources:
            differences = (f"code: files that git did not track are not recorded: {', '.join(sources)}",)
        yield Code(package, f"{then}, put aside", differences)


def _describe(checkout: Mapping[str, Any] | None) -> str:
    if not checkout:
        return "no git checkout"
    return f"commit {checkout['commit'][:12]}{' with uncommitted changes' if checkout['is_dirty'] else ''}"


def settle(
    tracking: TrackingConfig,
    run: RunRecord,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    is_pruned_after: int | None,
) -> tuple[dict[str, Any], list[str]]:
    """Return a recorded configuration with what its machine had settled, and what differs of it.

    Device, precision and threads become those that the run had. The test split is not read.

    Args:
        config: as the run recorded it; its sections may lack keys that are newer, or have others.
        overrides: of settings in `MAY_CHANGE`.
        is_pruned_after: epochs after which the run was pruned, or None.

    Raises:
        ConfigError: an override of another setting, or with a wrong value.
    """
    values = {key: dict(part) if isinstance(part, Mapping) else part for key, part in config.items()}
    notes = []
    trainer = values["trainer"]
    for key in ("device", "precision", "threads"):
        if (found := run.params.get(f"machine.{key}")) is not None:
            trainer[key] = int(found) if key == "threads" else found
    for override in parse_overrides(overrides):
        path = override.key_or_group
        if path not in MAY_CHANGE:
            raise ConfigError(
                f"a rerun trains the run as it was configured: {path} cannot change"
                + did_you_mean(path, MAY_CHANGE)
            )
        section, key = path.split(".")
        was, values[section][key] = values[section].get(key), override.value()
        if section == "trainer" and was != values[section][key]:
            notes.append(f"{path}: {was} then, {values[section][key]} now (as asked)")
    notes += _at_hand(trainer)
    if is_pruned_after is not None and "end_after" in trainer:
        trainer["end_after"] = is_pruned_after
    values["evaluate_test"] = False
    values["tracking"] |= {"dir": str(Path(tracking.dir).expanduser().resolve())}
    changed = {key for key in run.tags if key.startswith(names.CHANGED)}
    notes += [
        f"{key.removeprefix(names.CHANGED)}: was changed when the run was resumed, to {run.tags[key]}"
        for key in sorted(changed)
        if not key.endswith(("max_epochs", "early_stopping_patience"))  # its epochs do not depend on these
    ]
    return values, notes


def _at_hand(trainer: dict[str, Any]) -> list[str]:
    """Replace a device or precision that this machine lacks by "auto"; say so."""
    try:
        asked = TrainerConfig(device=trainer["device"], precision=trainer["precision"])
    except ValueError as error:
        raise ConfigError(
            f"trainer.device={trainer['device']} trainer.precision={trainer['precision']}: "
            "no such device or precision"
        ) from error
    try:
        resolve_machine(asked)
        return []
    except ConfigError:
        here = resolve_machine(TrainerConfig())
    was = f"{trainer['device']} in {trainer['precision']}"
    trainer |= {"device": "auto", "precision": "auto"}
    return [f"device: {was} then, which this machine lacks; {here.device.type} now"]


def newer_settings(config: Mapping[str, Any]) -> list[str]:
    """Return what this program's configuration has that a recorded one lacks, in lines for people.

    Raises:
        ConfigError: the recorded configuration has a key or a value that this program does not know.
    """
    try:
        now = leaves_by_path(validate(RunConfig, config).to_dict())
    except ConfigError as error:
        raise ConfigError(f"the run's configuration does not fit the code as it is now: {error}") from None
    then = leaves_by_path(config)
    new = [f"{path}={value}" for path, value in now.items() if path not in then]
    return [f"config: settings that are newer than the run: {', '.join(new)}"] if new else []


def machine_differences(recorded: Mapping[str, Any], now: Environment) -> list[str]:
    """Return what differs of Python, packages, CPU and GPU, in lines for people.

    Args:
        recorded: the run's `environment.json`.
        now: what this process runs on.
    """
    then_packages = recorded.get("packages") or {}
    packages = [
        f"{name} {then_packages.get(name, 'missing')} then, {now.packages.get(name, 'missing')} now"
        for name in sorted({*then_packages, *now.packages} - {"harness"})
        if then_packages.get(name) != now.packages.get(name)
    ]
    facts = {"python": now.python, "system": now.system, "cpu": now.cpu, "device": now.device,
             "instructions": now.instructions}  # fmt: skip
    differing = [
        f"{name}: {recorded[name]} then, {value} now"
        for name, value in facts.items()
        if recorded.get(name) and value and recorded[name] != value  # earlier versions recorded fewer
    ]
    return ([f"packages: {'; '.join(packages)}"] if packages else []) + differing
