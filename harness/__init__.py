"""A research harness for image classification: from a question to a defended answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import (
        compare,
        compose,
        cross_validate,
        ensemble,
        evaluate,
        export_run,
        finalize,
        load,
        predict,
        replicate,
        rerun,
        resume,
        sweep,
        train,
    )
    from harness.errors import HarnessError

__version__ = "0.1.0"

# What is public. `harness/api.py` shows how to use each of the functions.
__all__ = [
    "HarnessError",
    "compare",
    "compose",
    "cross_validate",
    "ensemble",
    "evaluate",
    "export_run",
    "finalize",
    "load",
    "predict",
    "replicate",
    "rerun",
    "resume",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is public when it is first asked for: `import harness` itself costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    from harness import api, errors

    return errors.HarnessError if name == "HarnessError" else getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
