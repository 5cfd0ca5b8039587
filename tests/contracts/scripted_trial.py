"""What the contract of executors places instead of a trial: it does what its spec says, and notes it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def run(spec_path: str) -> int:
    """Run a spec such as `{"lasts": 60, "exit_code": 3}`; SIGTERM ends it with 143, as it does a trial."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    path = Path(spec_path)
    spec = json.loads(path.read_text())
    names = ("CUDA_VISIBLE_DEVICES", "DATA_DIR", "HARNESS_OFFLINE")
    environment = {name: os.environ.get(name) for name in names}
    note = {"pid": os.getpid(), "cwd": str(Path.cwd()), "environment": environment}
    _write(path.with_name("up.json"), json.dumps(note))
    print(f"hello from {path.parent.name}", flush=True)
    print("a word on stderr", file=sys.stderr, flush=True)
    until = time.monotonic() + spec.get("lasts", 0)
    while time.monotonic() < until:
        if stopped and not spec.get("deaf"):
            print("stopped", flush=True)
            return 143
        time.sleep(0.02)
    if spec.get("signal"):
        os.kill(os.getpid(), spec["signal"])
    return int(spec.get("exit_code", 0))


def _write(path: Path, text: str) -> None:
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").rename(path)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
