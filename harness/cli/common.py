"""Options, exit codes and defaults that several commands share."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.documents import Document

if TYPE_CHECKING:
    from harness.config.schema import TrackingConfig

Run = Callable[[argparse.Namespace], int | Document]  # a command; the exit code, or the result
AddCommand = Callable[[str, Run, str], argparse.ArgumentParser]  # its name, itself, its help
EXIT_OK, EXIT_BUG, EXIT_USAGE = 0, 1, 2


def tracking_config(options: argparse.Namespace) -> TrackingConfig:
    from harness.config.schema import TrackingConfig

    return TrackingConfig.at(options.mlruns)


def terminal_width() -> int | None:
    """Return how many columns the terminal has; None where the output goes to a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def add_mlruns(command: argparse.ArgumentParser) -> None:
    command.add_argument("--mlruns", help="the folder of runs (default: $MLRUNS_DIR or mlruns)")


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON document (docs/programs.md)")


def place_overrides(options: argparse.Namespace) -> list[str]:
    """Return the overrides that have the same effect as the options `--mlruns` and `--storage`."""
    from harness.config.overrides import as_override_value

    places = {"tracking.dir": options.mlruns, "sweep.storage": getattr(options, "storage", None)}
    return [f"{path}={as_override_value(value)}" for path, value in places.items() if value is not None]


def config_dir(options: argparse.Namespace) -> dict[str, Path]:
    return {"config_dir": options.config_dir} if options.config_dir else {}
