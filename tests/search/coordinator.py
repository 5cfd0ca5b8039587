"""A call of a sweep with stand-ins for its trials, as a command, for tests that kill or interrupt it."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.config.compose import compose_sweep
from harness.errors import HarnessError
from harness.search import scheduler, standby
from harness.search.executors.local import LocalExecutor, RunTrial
from harness.search.sweep import run_sweep
from tests.search.fake_training import PRELOAD, run_trial

LOOK_S = 0.3  # of waiting loops: tests wait for others more often than people do


def main(config_dir: str, *overrides: str, run: RunTrial = run_trial) -> int:
    """Do what `harness sweep` does, with its exit codes."""
    scheduler.POLL_S = standby.LOOK_S = LOOK_S
    executor = LocalExecutor(run_trial=run, preload=PRELOAD)
    try:
        return run_sweep(compose_sweep(overrides, Path(config_dir)), executor=executor).exit_code
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
