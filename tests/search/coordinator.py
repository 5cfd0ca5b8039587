"""A sweep with the fake training as a command, for tests that kill or interrupt it."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.config.compose import compose_sweep
from harness.search.executors.local import LocalExecutor
from harness.search.sweep import run_sweep
from tests.search.fake_training import PRELOAD, run_trial


def main(config_dir: str, *overrides: str) -> int:
    executor = LocalExecutor(run_trial=run_trial, preload=PRELOAD)
    return run_sweep(compose_sweep(overrides, Path(config_dir)), executor=executor).exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
