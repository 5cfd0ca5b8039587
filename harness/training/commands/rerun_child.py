"""The process in which `harness rerun` trains, with whatever version of this package lies first on its path.

`rerun.py` starts this file as a script, with its job as JSON. So it may use only functions that the package
has had since runs can be resumed: `load_splits` and `run_training`. It reports the digest of the images that
it finds, and trains when it has been told which run to record.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main(job_file: str, report_to: str) -> int:
    """Do the job; return the exit code of the training."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # until the training answers it
    path = Path(job_file)
    job = json.loads(path.read_text(encoding="utf-8"))
    try:
        return _train(job, int(report_to))
    except Exception as error:
        from harness import errors

        if not isinstance(error, errors.HarnessError | ImportError | TypeError | ValueError):
            raise
        said = str(error).strip().splitlines() or [type(error).__name__]
        path.with_name("error").write_text(said[0], encoding="utf-8")
        return 2


def _train(job: dict[str, Any], report_to: int) -> int:
    import harness

    if Path(harness.__file__).resolve().parent != Path(job["package"]).resolve():
        raise ImportError(f"the package was imported from {harness.__file__}, not from {job['package']}")
    sys.argv = job["command"]  # recorded with the run
    from harness.config.schema import RunConfig
    from harness.data import load_splits
    from harness.logs import show_messages
    from harness.training.command import run_training

    show_messages()
    config = RunConfig.model_validate_json(json.dumps(job["config"]))
    os.write(report_to, (json.dumps({"digest": load_splits(config.data).digest}) + "\n").encode())
    os.close(report_to)
    run_id = sys.stdin.readline().strip()
    if not run_id:  # the images are others
        return 2
    ended = run_training(config, run_id)
    return ended[0] if isinstance(ended, tuple) else ended


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
