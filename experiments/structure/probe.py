"""Runs a sweep of one trial and records the stacks of our functions; imported in the sweep's own processes.

`frames.py` starts this file as a module `probe` beside the tree that is looked at, of whatever age that is:
it touches nothing of the tree but `LocalExecutor`, its placement and `trial.run`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def own_stack() -> list[str]:
    """Return the functions of the harness on the stack, outermost first."""
    names = []
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("harness.") and not frame.f_code.co_name.startswith("<"):
            names.append(f"{module}.{frame.f_code.co_qualname}")
        frame = frame.f_back  # type: ignore[assignment]
    return names[::-1]


def keep(name: str, stack: list[str]) -> None:
    """Write a stack down, the first time that its place is reached."""
    path = Path(os.environ["PROBE_DIR"]) / name
    if not path.exists():
        path.write_text(json.dumps(stack))


def run_trial(spec_path: str) -> int:
    """Run a trial as ever, in its own process, with an optimiser that records who makes it."""
    import torch

    from harness.search import trial

    original = torch.optim.Optimizer.__init__

    def recording(self: Any, *args: Any, **kwargs: Any) -> None:
        stack = own_stack()
        if any(name.startswith("harness.search") for name in stack):
            keep("optimiser.json", stack)
        original(self, *args, **kwargs)

    torch.optim.Optimizer.__init__ = recording  # type: ignore[method-assign]
    run = getattr(trial, "run")  # noqa: B009 - a function in older trees, a module in newer ones
    return int(run(spec_path) if callable(run) else run.run(spec_path))


def main(overrides: list[str]) -> int:
    """Run the command with an executor that records who places the trial."""
    from harness.cli.main import main as command
    from harness.search.executors import local

    make_executor, make_placement = local.LocalExecutor.__init__, local.LocalPlacement.__init__

    def executor(self: Any, *args: Any, **kwargs: Any) -> None:
        make_executor(self, *args, **kwargs)
        self._run_trial = run_trial

    def placement(self: Any, *args: Any, **kwargs: Any) -> None:
        keep("placement.json", own_stack())
        make_placement(self, *args, **kwargs)

    local.LocalExecutor.__init__ = executor  # type: ignore[method-assign]
    local.LocalPlacement.__init__ = placement  # type: ignore[method-assign]
    return int(command(["sweep", *overrides]))
