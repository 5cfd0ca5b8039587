"""`make experiment NAME=…`: a study's arms, trained with the same seeds, compared, reported.

    python -m experiments.studies freezing            repeat it to go on: nothing recorded is repeated
    python -m experiments.studies freezing --digits   tries it out on scikit-learn's digits, in minutes

The trainings go one after another, one seed of all arms before the next, recorded in MLflow ($MLRUNS_DIR).
After each, the report is written again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.studies import int8, report
from experiments.studies.plan import FOLDER, Experiment, load, study_names
from experiments.trainings import ensure, exit_code_of, recorded, report_folder


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
    return exit_code_of(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    seeds = None if options.seeds is None else tuple(options.seeds)
    experiment = load(options.name, seeds=seeds, on_digits=options.digits)
    is_trial = options.digits or seeds is not None
    own = FOLDER / experiment.name
    output = options.output or report_folder(experiment.name, own, is_trial=is_trial)
    if not options.report:
        train(experiment, output)
    report.write(experiment, output)


def train(experiment: Experiment, output: Path) -> None:
    """Train what is not recorded yet."""
    cells = [cell for cell in experiment.cells() if cell.arm.combine is None]
    for number in range(len(experiment.seeds) * experiment.study.members):
        for cell in cells:
            (training,) = experiment.settled(cell, cell.trainings[number : number + 1])
            run = recorded(training)
            finished = ensure(training)
            if experiment.study.int8:
                int8.measure(finished)
            if run is None or run.status != "FINISHED":
                report.write(experiment, output)


if __name__ == "__main__":
    sys.exit(main())
