"""`make experiment NAME=…`: a study's arms, trained with the same seeds, compared, reported.

    python -m experiments.studies freezing            repeat it to go on: nothing recorded is repeated
    python -m experiments.studies freezing --digits   tries it out on scikit-learn's digits, in minutes

The trainings go one after another, one seed of all arms before the next, recorded in MLflow ($MLRUNS_DIR).
After each, the report is written again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.studies import int8, report
from experiments.studies.plan import FOLDER, Experiment, load, study_names
from experiments.trainings import StoppedError, ensure, recorded
from harness.config.compose import compose_run
from harness.errors import HarnessError
from harness.signals import EXIT_INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help=", ".join(study_names()))
    parser.add_argument("--digits", action="store_true", help="on scikit-learn's digits")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the plan's")
    parser.add_argument(
        "--report", action="store_true", help="train nothing: write the report of what is recorded"
    )
    parser.add_argument("--output", type=Path, help="folder of the report (default: the study's)")
    options = parser.parse_args(arguments)
    try:
        seeds = None if options.seeds is None else tuple(options.seeds)
        experiment = load(options.name, seeds=seeds, on_digits=options.digits)
        is_trial = options.digits or seeds is not None
        output = options.output or _output(experiment, is_trial=is_trial)
        if not options.report:
            train(experiment, output)
        report.write(experiment, output)
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return os.EX_USAGE
    return os.EX_OK


def train(experiment: Experiment, output: Path) -> None:
    """Train what is not recorded yet."""
    members = experiment.study.members
    for number in range(len(experiment.seeds) * members):
        for cell in experiment.cells():
            training = experiment.settled(cell).trainings[number]
            run = recorded(training)
            finished = ensure(training)
            if experiment.study.int8:
                int8.measure(finished)
            if run is None or run.status != "FINISHED":
                report.write(experiment, output)


def _output(experiment: Experiment, *, is_trial: bool) -> Path:
    """Return the study's folder; of a trial run, a folder among the runs."""
    if not is_trial:
        return FOLDER / experiment.name
    return Path(compose_run(()).tracking.dir) / "experiments" / experiment.name


if __name__ == "__main__":
    sys.exit(main())
