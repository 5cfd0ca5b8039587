"""`make experiment NAME=…`: a published training, repeated, timed, compared, improved; or the table of all.

    python -m experiments.published keras_cnn_5           repeat it to go on: nothing recorded is repeated
    python -m experiments.published keras_cnn_5 --digits  tries it out on scikit-learn's digits, in minutes
    python -m experiments.published --table               the five systems, from the results in the folders

The trainings go one after another, recorded in MLflow ($MLRUNS_DIR). After each, the report is written again,
so that nothing is lost when the command is stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.published import leak, report, timing
from experiments.published.plan import FOLDER, ON_DIGITS, Experiment, experiment_names, load
from experiments.published.results import RESULTS, Results, gather
from experiments.trainings import Training, ensure, exit_code_of, recorded, report_folder
from harness.errors import ModelError

PARTS = ("published", "timing", "strategies", "test-images", "ladder", "final", "report")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help=", ".join(experiment_names()))
    parser.add_argument("--table", action="store_true", help="print the table of all experiments")
    parser.add_argument("--digits", action="store_true", help="on 200 of scikit-learn's digits, one epoch")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the plan's")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="of the experiment")
    parser.add_argument("--output", type=Path, help="folder of the report (default: the experiment's)")
    options = parser.parse_args(arguments)
    if options.table:
        print(report.table({name: _read(name) for name in experiment_names()}))
        return os.EX_OK
    if options.name is None:
        parser.error("name an experiment, or --table")
    return exit_code_of(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    seeds = None if options.seeds is None else tuple(options.seeds)
    experiment = load(options.name, seeds=seeds, added=ON_DIGITS if options.digits else ())
    is_trial = options.digits or seeds is not None
    own = FOLDER / experiment.name
    output = options.output or report_folder(experiment.name, own, is_trial=is_trial)
    Conductor(with_weights(experiment), output).run(options.parts)


def with_weights(experiment: Experiment) -> Experiment:
    """Return the experiment, with another backbone where the recipe's weights cannot be loaded."""
    from harness.models import build_model

    if not experiment.plan.without_weights:
        return experiment
    try:
        build_model(experiment.config.model, 10)
    except ModelError as error:
        instead = " ".join(experiment.plan.without_weights)
        print(f"{error}\nso this experiment runs with {instead}", file=sys.stderr)
        added = (*experiment.added, *experiment.plan.without_weights)
        return replace(experiment, added=added)
    return experiment


class Conductor:
    """Trains the parts of an experiment in turn, and writes its report after each training.

    Args:
        experiment: what to train.
        output: the folder of the report.
    """

    def __init__(self, experiment: Experiment, output: Path) -> None:
        self.experiment = experiment
        self.output = output
        self.copies: leak.Copies | None = None
        self.planted: tuple[int, int] | None = None

    def run(self, parts: Sequence[str]) -> None:
        """Run some of `PARTS`, in their own order."""
        plan = self.experiment.plan
        if "published" in parts:
            self._train(self.experiment.published())
        if "timing" in parts:
            timing.measure(self.experiment)
        if "strategies" in parts:
            for arm in plan.strategies:
                self._train(self.experiment.strategy(arm))
        if plan.tests_on_training and "test-images" in parts:
            self._test_images()
        if plan.ladder and "ladder" in parts:
            for number in range(len(plan.ladder) + 1):
                self._train(self.experiment.step(number))
        if plan.ladder and "final" in parts:
            self._train(self.experiment.final())
        self.write()

    def _test_images(self) -> None:
        self._train(leak.honest(self.experiment))
        leak.fine_tune_script(self.experiment)
        self._arrange()
        assert self.copies is not None
        self._train(leak.mixed(self.experiment, self.copies))

    def _arrange(self) -> None:
        self.copies = leak.prepare(self.experiment)
        self.planted = self.copies.planted, leak.planted_that_train(self.experiment, self.copies)

    def _train(self, trainings: Sequence[Training]) -> None:
        for training in trainings:
            run = recorded(training)
            ensure(training)
            if run is None or run.status != "FINISHED":
                self.write()

    def write(self) -> Results:
        """Write `results.json`, `REPORT.md` and its pictures."""
        if (
            self.experiment.plan.tests_on_training
            and self.copies is None
            and leak.is_prepared(self.experiment)
        ):
            self._arrange()
        results = gather(self.experiment, self.copies, self.planted)
        self.output.mkdir(parents=True, exist_ok=True)
        (self.output / RESULTS).write_text(results.to_json(), encoding="utf-8")
        pictures = report.copy_pictures(self.experiment, results, self.output)
        text = report.render(self.experiment, results, pictures)
        (self.output / report.REPORT).write_text(text, encoding="utf-8")
        print(f"report: {self.output / report.REPORT}", flush=True)
        return results


def _read(name: str) -> Results | None:
    file = FOLDER / name / RESULTS
    return Results.read(file) if file.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
