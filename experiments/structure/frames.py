"""Lists the functions on the stack from `harness sweep` to the optimiser, by a sweep of one trial on digits.

The stack has two parts, as a trial has a process of its own: up to the trial's placement, and in its process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

OVERRIDES = (
    "data=digits",
    "data.max_train_samples=256",
    "sweep.num_trials=1",
    "sweep.slots=1",
    "trainer.max_epochs=1",
    "tracking.log_model=false",
)


def frames_to_optimiser(tree: Path) -> list[str]:
    """Return our functions from the command line to the optimiser's constructor, outermost first.

    Args:
        tree: a checkout of this repository, of any age.

    Raises:
        RuntimeError: the sweep made no optimiser; the message holds the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="structure-") as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tree), str(Path(__file__).parent)]),
            "PROBE_DIR": folder,
            "MLRUNS_DIR": f"{folder}/mlruns",
            "CACHE_DIR": f"{folder}/cache",
        }
        # `probe` is imported, not run as __main__, as the trial's process must import its `run_trial`.
        code = "import sys, probe; sys.exit(probe.main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, *OVERRIDES],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        stacks = [Path(folder) / "placement.json", Path(folder) / "optimiser.json"]
        if not all(path.exists() for path in stacks):
            raise RuntimeError(f"no optimiser was made: {(done.stdout + done.stderr)[-2000:]}")
        return [name for path in stacks for name in json.loads(path.read_text())]
