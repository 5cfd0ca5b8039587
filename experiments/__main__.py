"""`make experiment NAME=…`: runs an experiment by its name, be it a published training or a study."""

from __future__ import annotations

import os
import sys

from experiments.published.__main__ import main as repeat_published
from experiments.published.plan import experiment_names
from experiments.studies.__main__ import main as run_study
from experiments.studies.plan import study_names
from harness.errors import did_you_mean


def main(arguments: list[str]) -> int:
    """Run the experiment that the first argument names; return the exit code."""
    name = arguments[0] if arguments else ""
    if name in study_names():
        return run_study(arguments)
    if name in experiment_names():
        return repeat_published(arguments)
    names = [*experiment_names(), *study_names()]
    near = did_you_mean(name, names)
    print(f"error: there is no experiment {name!r}{near}; there are {', '.join(names)}", file=sys.stderr)
    return os.EX_USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
