"""The schema of a run and of a sweep, and how `configs/` becomes one."""

from harness.config.schema import RunConfig
from harness.config.sweep import SweepConfig

__all__ = ["RunConfig", "SweepConfig"]
