"""Runs a sweep of one trial and records the stacks of the harness's functions.

`frames.py` starts a process that imports this file as the module `probe`, together with the `harness` of the
tree that is examined; the trial's process imports it, too. The tree may be an old one, so this file uses
nothing of it except `cli.main`, `LocalExecutor`, `LocalPlacement` and `trial.run`.
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
    """Write a stack to the file `name`, unless the file exists: the first stack counts."""
    path = Path(os.environ["PROBE_DIR"]) / name
    if not path.exists():
        path.write_text(json.dumps(stack))


def run_trial(spec_path: str) -> int:
    """Run a trial as usual, but record the stack on which its optimiser is constructed."""
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
    """Run `harness sweep`, but record the stack on which the trial is placed."""
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
