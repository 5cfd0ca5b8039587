"""The time of one epoch, of the harness and of the published script in turn, recorded with a run.

`__main__.py` calls `measure`; `script.py` is what the harness is compared with. Each repetition is a run of
its own in the store, so a measurement that was killed goes on with the next.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from experiments.published import script
from experiments.published.plan import Experiment
from experiments.trainings import Training, ensure
from harness.data import load_splits
from harness.tracking.runs import RunRecord
from harness.tracking.store import open_store

REPEATS = 3
# Metrics of a timing run: of the script, and Unix's load average of the minute before.
SCRIPT_SECONDS, LOAD = "script/epoch_seconds", "load_before"
# An epoch of training, without what follows it.
ONE_EPOCH = (
    "trainer.max_epochs=1",
    "evaluate_test=false",
    "evaluation.pictures=none",
    "tracking.log_model=false",
)


@dataclass(frozen=True)
class Seconds:
    """What an epoch took, one after the other."""

    harness: float
    script: float
    load: float  # Unix's load average of the minute before

    @property
    def ratio(self) -> float:
        return self.harness / self.script


def trainings(experiment: Experiment) -> list[Training]:
    """Return the runs that time an epoch of the harness."""
    frozen = experiment.config.finetune.freezes
    uncached = ("finetune.cache_features=false",) if frozen else ()
    (published, *_) = experiment.trainings("", (*ONE_EPOCH, *uncached))
    return [
        Training(experiment.name, f"timing{number}", published.seed, published.settings)
        for number in range(REPEATS)
    ]


def measure(experiment: Experiment) -> None:
    """Time what has not been timed yet.

    Raises:
        HarnessError: a training cannot begin.
        CalledProcessError: the script failed; its output was printed.
    """
    for training in trainings(experiment):
        load = os.getloadavg()[0]
        run = ensure(training)
        if SCRIPT_SECONDS not in run.metrics:
            seconds = _time_script(experiment)
            tracker = open_store(experiment.config.tracking).reopen_run(run.run_id)
            tracker.log_summary({SCRIPT_SECONDS: seconds, LOAD: load})
            tracker.finish("FINISHED")


def seconds_of(run: RunRecord) -> Seconds | None:
    """Return what a run has timed; None if it is not complete."""
    if SCRIPT_SECONDS not in run.metrics or "epoch_seconds" not in run.metrics:
        return None
    return Seconds(run.metrics["epoch_seconds"], run.metrics[SCRIPT_SECONDS], run.metrics[LOAD])


def _time_script(experiment: Experiment) -> float:
    """Return the seconds of the script's epoch, on the images that the harness trained on."""
    train = load_splits(experiment.config.data).train
    found = script.start(experiment.name, (train.gather(slice(None)), train.labels))
    return float(found["epoch_seconds"][-1])
