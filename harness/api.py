"""The harness from Python: what the commands do, with results that a program can read.

    import harness

    found = harness.sweep("data=digits", "sweep.num_trials=8")
    print(harness.compare())
    bundle = harness.export_run()
    print(harness.predict(bundle.path, ["cat.png"]))

Settings are given as on the command line: `KEY=VALUE` texts over the files in `configs/`. Runs are recorded
in `mlruns` (or $MLRUNS_DIR), where the commands find them, too. A mistake raises
:class:`harness.HarnessError`, whose text is one line.

`harness/__init__.py` names what is public and imports this file when one of its functions is first asked for.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from harness.config.compose import CONFIG_DIR, compose_run, compose_sweep
from harness.config.overrides import as_override_value
from harness.config.schema import RunConfig, TrackingConfig

if TYPE_CHECKING:  # each function imports what it needs: predicting needs no torch, comparing no Optuna
    from harness.analysis.combined import Combined
    from harness.analysis.table import Comparison
    from harness.export import Predictions
    from harness.export.bundle import ExportResult
    from harness.models import ImageClassifier
    from harness.search.sweep import SweepResult
    from harness.training.checkpoints.checkpoint import Checkpoint
    from harness.training.commands.cross_validate import CrossValidation
    from harness.training.commands.finalize import Final
    from harness.training.commands.rerun import Rerun
    from harness.training.result import RunResult


Given = ParamSpec("Given")
Result = TypeVar("Result")


def _starts_processes(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Let the processes that a function starts import `harness.__main__`, as the command's processes do.

    `multiprocessing` imports the caller's script in each of them, unless the program was started as
    `python -m PACKAGE`. A script without `if __name__ == "__main__":` would begin a sweep in every trial.
    """

    @functools.wraps(function)
    def started(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        main = sys.modules["__main__"]
        before, main.__spec__ = main.__spec__, find_spec("harness.__main__")
        try:
            return function(*args, **kwargs)
        finally:
            main.__spec__ = before

    return started


def compose(*overrides: str, config_dir: Path = CONFIG_DIR) -> RunConfig:
    """Return the validated configuration of a run, as `harness train --print-config` shows it.

        >>> harness.compose("model=lenet", "optim.lr=3e-4").optim.lr
        0.0003

    Raises:
        ConfigError: an unknown key, or a value out of its range.
    """
    return compose_run(overrides, config_dir)


@_starts_processes
def train(*overrides: str, config_dir: Path = CONFIG_DIR) -> RunResult:
    """Train one configuration and record it, like `harness train`; print a line after each epoch.

        >>> result = harness.train("data=digits", "model=lenet", "trainer.max_epochs=1")
        epoch 1/1 ...
        >>> result.status
        'finished'
        >>> sorted(result.metrics)[-2:]
        ['val/precision', 'val/recall']

    Ctrl-C ends the training after the current batch, and the result's status is "interrupted"; :func:`resume`
    continues the run.

    Raises:
        HarnessError: a mistake in the configuration, the data or the run store; the loss became NaN; or a
            process that trained with others was killed.
    """
    from harness.training.command import run_training

    return _result(run_training(compose_run(overrides, config_dir)))


@_starts_processes
def cross_validate(*overrides: str, config_dir: Path = CONFIG_DIR) -> CrossValidation:
    """Train a configuration once for each fold, like `harness cross-validate`; the same call again goes on.

        >>> folds = harness.cross_validate("data=digits", "model=lenet", "finetune=full", "data.folds=2",
        ...                                "trainer.max_epochs=1", "evaluation.pictures=none")
        fold 0 of 2:
        ...
        >>> folds.score.n, len(folds.evaluation.predictions)
        (2, 1438)

    Args:
        overrides: of a run; `data.folds` is 5 unless it is given.

    Raises:
        HarnessError: a mistake in the configuration or the data, a fold without a class, a training that
            failed, or an interruption (the same call goes on).
    """
    from harness.errors import HarnessError
    from harness.training.commands import cross_validate as work

    found = work.cross_validate(compose_run(overrides, config_dir))
    if found is None:
        raise HarnessError("the training was interrupted: the same call goes on with it")
    return found


@_starts_processes
def resume(run: str, *overrides: str, mlruns: str | None = None) -> RunResult:
    """Go on with an interrupted run, or train a finished one longer, like `harness train --resume`.

        >>> harness.resume(result.run_id)
        Traceback (most recent call last):
        ...
        harness.errors.TrackingError: run ... has finished its 1 epochs: ...

    Args:
        run: its id, a unique prefix of it, or its unique name.
        overrides: how long it is to train, and on which device.
        mlruns: the folder of runs; by default $MLRUNS_DIR or `mlruns`.

    Raises:
        HarnessError: there is no such run, it has nothing left to do, or as for :func:`train`.
    """
    from harness.training.commands.resume_run import resume_training

    return _result(resume_training(TrackingConfig.at(mlruns), run, overrides))


@_starts_processes
def rerun(run: str, *overrides: str, here: bool = False, mlruns: str | None = None) -> Rerun:
    """Train a recorded run again, with the code that it had, and compare its metrics, like `harness rerun`.

        >>> again = harness.rerun(result.run_id)
        run ...
        >>> again.repetition.is_equal, again.repetition.sentence
        (True, 'equal to the last bit in ... metrics (... values, 1 epoch)')

    Args:
        run: its id, a unique prefix of it, or its unique name.
        overrides: where its images lie, and on what to train, such as `data.dir=…`.
        here: train with the code as it is now, whatever the run's was.
        mlruns: the folder of runs; by default $MLRUNS_DIR or `mlruns`.

    Raises:
        HarnessError: there is no such run, its code or images are not at hand, or the training failed.
    """
    from harness.training.commands.rerun import rerun as work

    return work(TrackingConfig.at(mlruns), run, overrides, here=here)


@_starts_processes
def sweep(*overrides: str, config_dir: Path = CONFIG_DIR, extend: bool = False) -> SweepResult:
    """Search a space of configurations, like `harness sweep`; the same call again goes on where it stopped.

        >>> found = harness.sweep("data=digits", "model=lenet", "finetune=full", "trainer.max_epochs=1",
        ...                       "sweep.num_trials=2", "sweep.replicate.seeds=0", "sweep.slots=1")
        sweep ...
        >>> found.outcome, len(found.rows)
        ('complete', 2)
        >>> found.best.score == max(row.score for row in found.rows)
        True
        >>> found.verdict.sentence
        'trial ... of 2 single runs: only fresh seeds can tell how much of that is luck (harness replicate)'
        >>> found.verdict.notes
        ('0... is the best of 2 single runs on the same 144 images; corrected for that choice it is 0...',)

    Args:
        config_dir: the folder of configuration files.
        extend: give an existing sweep a larger space or further constraints; its trials are kept.

    Raises:
        HarnessError: the space, the data or the stores do not allow it, or trials keep failing.
    """
    from harness.search.sweep import run_sweep

    return run_sweep(compose_sweep(overrides, config_dir), extend=extend)


@_starts_processes
def replicate(
    sweep: str | None = None,
    *overrides: str,
    top: int = 1,
    seeds: int = 3,
    fresh_splits: bool = False,
    mlruns: str | None = None,
    storage: str | None = None,
) -> SweepResult:
    """Train a sweep's best configurations again with fresh seeds, like `harness replicate`.

        >>> again = harness.replicate(found.name, seeds=2)
        sweep ...
        >>> again.verdict.sentence
        '... over 2 fresh seeds (95 % interval ...'

    Args:
        sweep: its name; by default the sweep that ran last.
        overrides: settings that differ now, such as `sweep.slots=2`.
        top: how many of the best configurations.
        seeds: fresh ones for each; with one there is no interval.
        fresh_splits: each seed also draws validation images of its own.
        mlruns: the folder of runs; by default $MLRUNS_DIR or `mlruns`.
        storage: the database of sweeps, such as `postgresql://…`; by default the one in the folder of runs.

    Raises:
        HarnessError: there is no such sweep, its search has not ended, or no trial of it is complete.
    """
    from harness.search.database.storage import storage_url
    from harness.search.sweep import replicate_sweep

    place = TrackingConfig.at(mlruns).dir
    return replicate_sweep(
        sweep,
        storage_url(place, storage),
        [f"tracking.dir={as_override_value(place)}", *overrides],
        asked={"top": top, "seeds": seeds, "fresh_splits": fresh_splits},
    )


@_starts_processes
def evaluate(run: str | None = None, *, split: str = "val", mlruns: str | None = None) -> dict[str, float]:
    """Score a run's best checkpoint on a split and record the result, like `harness evaluate`.

        >>> harness.evaluate(result.run_id)["val/accuracy"] == result.metrics["val/accuracy"]
        True

    Each reading of the test split is counted; the count is printed, as in the leaderboard and the model card.

    Args:
        run: a run's id or name, or a sweep's name; by default the best trial of the sweep that ran last.
        split: "val", "test", or the path of a tree of class folders with the run's classes.
        mlruns: the folder of runs; by default $MLRUNS_DIR or `mlruns`.

    Returns:
        Metrics by name: `val/accuracy`, `val/loss`, `val/f1`, …

    Raises:
        HarnessError: there is no such run, its checkpoint is gone, or the data have changed.
    """
    from harness.training.evaluate import evaluate_run

    done = evaluate_run(TrackingConfig.at(mlruns), run, split)
    if done.readings is not None:
        print(done.readings)
    return done.metrics


@_starts_processes
def finalize(
    sweep: str | None = None, *, retrain: bool = False, again: bool = False, mlruns: str | None = None
) -> Final:
    """Evaluate a sweep's winner on the test split, once, like `harness finalize`.

        >>> final = harness.finalize()
        sweep ...
        >>> low, high = final.interval
        >>> low < final.accuracy < high
        True

    Args:
        sweep: its name, or its run's id; by default the sweep that ran last.
        retrain: train its configuration again first, on the training and the validation images, for as many
            epochs as the winner's checkpoint had.
        again: evaluate although that was done before; otherwise the earlier result is returned.
        mlruns: the folder of runs; by default $MLRUNS_DIR or `mlruns`.

    Raises:
        HarnessError: there is no such sweep, it has no best trial, its data have changed, or the training was
            interrupted (the same call goes on with it).
    """
    from harness.errors import HarnessError
    from harness.training.commands import finalize as work

    found = work.finalize(TrackingConfig.at(mlruns), sweep, retrain=retrain, again=again)
    if found is None:
        raise HarnessError("the training was interrupted: the same call goes on with it")
    return found


@_starts_processes
def ensemble(
    *models: str,
    top: int = 5,
    greedy: bool = False,
    soup: bool = False,
    test: bool = False,
    again: bool = False,
    mlruns: str | None = None,
) -> Combined:
    """Combine several trained models into one and record it as a run, like `harness ensemble`.

        >>> both = harness.ensemble(found.name, top=2)
        sweep ...
        >>> both.kind, [member.weight for member in both.members]
        ('ensemble', [0.5, 0.5])
        >>> both.val_gain.low <= both.val_gain.difference <= both.val_gain.high
        True

    Args:
        models: a sweep, for its `top` best trials; or two runs and more; by default the sweep that ran last.
        greedy: choose the members on the validation images.
        soup: average the weights, not the probabilities; the result has a checkpoint, as every run has.
        test: read the test split with it, unless that was done before.
        again: read it once more.
        mlruns: the folder of runs; by default $MLRUNS_DIR or `mlruns`.

    Raises:
        HarnessError: there are no two such runs with checkpoints, they answer different images, or weights of
            different networks cannot be averaged.
    """
    from harness.training.commands.ensemble import combine

    return combine(
        TrackingConfig.at(mlruns), models, top=top, greedy=greedy, soup=soup, test=test, again=again
    )


def compare(
    *runs: str,
    sweep: str | None = None,
    filter: str | None = None,
    sort: str | None = None,
    mlruns: str | None = None,
) -> Comparison:
    """Return runs side by side, best first, like `harness compare`: scores, time, and what differs.

        >>> table = harness.compare(sort="val/accuracy")
        >>> "optim.lr" in table.columns, len(table.rows)
        (True, 4)

    `print` shows the table; `pandas.DataFrame(table.rows, columns=table.columns)` makes a frame of it.

    Args:
        runs: ids; by default the trials of the sweep that ran last.
        sweep: a sweep's name, or its run's id.
        filter: an MLflow filter, such as ``metrics.`val/accuracy` > 0.8``.
        sort: a column of the table; by default the sweep's own ranking.
        mlruns: the folder of runs; by default $MLRUNS_DIR or `mlruns`.

    Raises:
        HarnessError: no run fits, or a name in the request is wrong.
    """
    from harness.analysis.compare import compare_runs

    return compare_runs(TrackingConfig.at(mlruns), runs, sweep=sweep, filter=filter, sort=sort)


def load(run: str | None = None, *, mlruns: str | None = None) -> tuple[ImageClassifier, Checkpoint]:
    """Return the model of a run's best checkpoint, and what the checkpoint says about it.

        >>> classifier, checkpoint = harness.load(result.run_id)
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> classifier(images).shape == (2, len(checkpoint.class_names))
        True

    The classifier is a `torch.nn.Module` on the CPU, in evaluation mode. It takes images (B, 3, height,
    width) of any size, uint8 or float in [0, 1], and returns logits (B, classes).

    Args:
        run: a run's id or name, or a sweep's name; by default the best trial of the sweep that ran last.
        mlruns: the folder of runs; by default $MLRUNS_DIR or `mlruns`.

    Raises:
        HarnessError: there is no such run, or its checkpoint is gone or damaged.
    """
    from harness.tracking.choice import choose
    from harness.training.checkpoints.checkpoint import load_checkpoint, restore_classifier

    checkpoint = load_checkpoint(choose(TrackingConfig.at(mlruns), run).checkpoint)
    return restore_classifier(checkpoint), checkpoint


@_starts_processes
def export_run(
    run: str | None = None,
    output: Path | str = "exports",
    *,
    int8: float | None = None,
    mlruns: str | None = None,
) -> ExportResult:
    """Write a verified bundle of a run's best checkpoint, like `harness export`.

    The bundle holds safetensors, ONNX, a model card and checksums.

        >>> bundle = harness.export_run(result.run_id)
        >>> sorted(path.name for path in bundle.path.iterdir())[-1]
        'model.safetensors'

    Args:
        run: a run's id or name, or a sweep's name; by default the best trial of the sweep that ran last.
        output: the folder in which the bundle's folder is made.
        int8: write a quantised model, too, unless it loses more than this share of validation accuracy.
        mlruns: the folder of runs; by default $MLRUNS_DIR or `mlruns`.

    Raises:
        HarnessError: there is no such run, the images it was validated on are gone, or the exported model
            does not give the same answers.
    """
    from harness.export import run as export

    return export.export_run(TrackingConfig.at(mlruns), run, Path(output), int8)


def predict(
    bundle: Path | str, images: Sequence[Path | str], *, top: int = 3, int8: bool = False
) -> Predictions:
    """Classify image files with an exported bundle, like `harness predict`; needs no torch.

        >>> answers = harness.predict(bundle.path, ["digit.png"], top=1)
        >>> len(answers), answers.failed
        (1, False)

    Args:
        images: files, or folders of them.
        top: how many classes each prediction names.
        int8: by the bundle's quantised model.

    Raises:
        HarnessError: the bundle is missing or damaged, or a folder holds no image.
    """
    from harness.export import predict_files

    return predict_files(bundle, images, top_k=top, int8=int8)


def _result(ended: tuple[int, RunResult | None]) -> RunResult:
    from harness.errors import HarnessError

    code, result = ended
    if result is None:
        raise HarnessError(f"the processes that train together ended with exit code {code}")
    return result
