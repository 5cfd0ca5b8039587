"""`Place`: a benchmark's folder, data and sizes; it runs each measurement in a new process."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from harness.config.compose import compose_run
from harness.config.finetune import LinearProbe
from harness.data import load_splits
from harness.search.executors.local import PRELOADED, LocalExecutor
from harness.tracking.store import open_store

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")

# For rows that do not measure validation: a smaller fraction of validation images, and how many times as many
# there are by default.
FEW_VAL, FEW_VAL_SCALE = "data.val_fraction=0.02", 0.1 / 0.02
SPEED_MODEL = "speed_cnn"
PRELOAD = [*PRELOADED, "experiments.performance.searching"]  # it imports the usual script's libraries
HAS_FEATURE_CACHE = "cache_features" in LinearProbe.model_fields


@dataclass(frozen=True)
class Scale:
    """How many images, epochs, trials, seconds and repeats are measured."""

    repeats: int = 3
    input_seconds: float = 3.0  # of each side of the input pipeline
    augment_seconds: float = 0.4  # of each technique, on each side
    step_seconds: float = 4.0  # of each side of a comparison of training steps; three steps at least
    speed_batch: int = 500
    speed_images: int = 1500  # of an epoch of the speed CNN against a bare loop
    lenet_images: int = 15_000
    probe_images: int | None = None  # of the harness's linear probes; None = all
    probe_epochs: int = 10
    probe_trials: int = 8
    fraction_images: int = 2000  # where a measured time is scaled up to all images: training and ...
    fraction_val: int = 500  # ... validation images
    wide_images: int = 2000  # of the wide_cnn trials, both sides


FULL = Scale()
QUICK = Scale(
    repeats=1,
    input_seconds=0.3,
    augment_seconds=0.01,
    step_seconds=0.3,
    speed_batch=64,
    speed_images=128,
    lenet_images=512,
    probe_images=256,
    probe_epochs=2,
    probe_trials=2,
    fraction_images=128,
    fraction_val=64,
    wide_images=128,
)


@dataclass(frozen=True)
class Place:
    """A folder with decoded data and a run store for the benchmark alone, and the sizes to measure with."""

    folder: Path
    scale: Scale
    data: str  # "cifar10" or "digits": what data=auto found
    num_train: int  # images of the whole training split
    num_val: int

    @property
    def is_cifar10(self) -> bool:
        return self.data == "cifar10"

    def overrides(self, *more: str) -> list[str]:
        """Return the overrides that all measurements have in common, then `more`."""
        return [*_own_places(self.folder), f"data={self.data}", *more]

    def available(self, images: int | None) -> int:
        """Return how many of the wanted number of training images there are; None asks for all."""
        return self.num_train if images is None else min(images, self.num_train)

    def limit(self, images: int | None) -> str:
        """Return the override that limits training images."""
        return f"data.max_train_samples={self.available(images)}"

    def run(
        self,
        function: Callable[Arguments, Value],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Value:
        """Call a module's function in a new process, which has its own threads, allocator and caches.

        The process is forked from a server that has imported the libraries, so imports are never timed.
        """
        LocalExecutor(preload=PRELOAD).start_server()
        context = multiprocessing.get_context("forkserver")
        log = str(self.folder / "output.log")
        with ProcessPoolExecutor(1, mp_context=context, initializer=_enter, initargs=(log,)) as pool:
            return pool.submit(function, *args, **kwargs).result()


def open_place(folder: Path, scale: Scale) -> Place:
    """Decode the data that `data=auto` finds, and create the run store, before anything is measured.

    Raises:
        HarnessError: data or folder cannot be used.
    """
    config = compose_run([*_own_places(folder), "data=auto", "model=lenet"])
    splits = load_splits(config.data)
    open_store(config.tracking).experiment_id("bench")
    return Place(folder, scale, splits.name, len(splits.train), len(splits.val))


def _own_places(folder: Path) -> list[str]:
    return [
        f"data.cache_dir='{folder / 'cache'}'",
        f"tracking.dir='{folder / 'mlruns'}'",
        "tracking.experiment=bench",
    ]


def _enter(log: str) -> None:
    """Make a fresh process like one that was started by hand, but for its output, which goes to a file."""
    # A child of a fork server would start a DataLoader's workers through a server of its own.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with Path(log).open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
