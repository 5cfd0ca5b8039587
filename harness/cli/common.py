"""What the commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.config.schema import TrackingConfig

EXIT_OK, EXIT_USAGE, EXIT_INTERRUPTED = 0, 2, 130


def tracking_config(options: argparse.Namespace) -> TrackingConfig:
    from harness.config.schema import TrackingConfig

    return TrackingConfig(dir=options.mlruns or os.environ.get("MLRUNS_DIR", "mlruns"))


def config_dir(options: argparse.Namespace) -> dict[str, Path]:
    return {"config_dir": options.config_dir} if options.config_dir else {}
