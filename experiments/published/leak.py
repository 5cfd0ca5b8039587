"""What training on test images does to the figure that is then reported, measured on copies of the data.

The published script of `keras_cnn_10` trains on the test images and reports its accuracy on them. The
harness reads the test split in one place, for scores alone, and leaves a training image out that is an
exact copy of a test image. So the data are arranged here: in a copy, the test images stand among the
training images, and in the test part each of them differs from itself in one bit, which hides that they are
the same. The harness then does what it always does. The script itself, in our transcription, is run as it
was published, too. `__main__.py` calls `prepare`, `fine_tune_script` and `planted_that_train`, and trains
`honest` and `mixed`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.published import script
from experiments.published.plan import ON_EVERYTHING, Experiment
from experiments.trainings import Training
from harness.config.compose import compose_run
from harness.config.overrides import as_override_value
from harness.data import load_splits
from harness.data.held_out import load_test
from harness.tracking.address import store_exists
from harness.tracking.runs import find_runs
from harness.tracking.store import open_store

DONE = "complete"  # a file that is written last
BEFORE, AFTER = "script/test_accuracy_before", "script/test_accuracy_after"  # metrics of a script's run
EXACT_SHARE = 100  # of so many test images, one goes into the copy with unchanged test images


@dataclass(frozen=True)
class Copies:
    """Folders of images, `train/CLASS/` and `test/CLASS/`.

    Args:
        mixed: the published training's images and the test images; the test part is off by one bit.
        exact: a few images of both, with some test images that are unchanged among the training images.
        planted: how many these are.
    """

    mixed: Path
    exact: Path
    planted: int


def honest(experiment: Experiment) -> list[Training]:
    """Return the published training on all training images: as many as the mixed copy has."""
    return experiment.trainings("all-training-images", ON_EVERYTHING)


def mixed(experiment: Experiment, copies: Copies) -> list[Training]:
    """Return the published training on the copy whose training images include the test images."""
    added = tuple(text for text in experiment.added if not text.startswith(("data=", "data.")))
    settings = (*_data_in(copies.mixed, experiment), *ON_EVERYTHING)
    return replace(experiment, added=added).trainings("test-images-among-them", settings)


def is_prepared(experiment: Experiment) -> bool:
    """Return whether the copies are there."""
    return (_place(experiment) / DONE).is_file()


def prepare(experiment: Experiment) -> Copies:
    """Write the copies below the cache folder, unless they are there."""
    config, root = experiment.config, _place(experiment)
    splits, test = load_splits(config.data), load_test(config.data)
    few = _few_of_each(test.labels)
    copies = Copies(root / "mixed", root / "exact", len(few))
    if not (root / DONE).is_file():
        names = splits.class_names
        train_images, test_images = splits.train.gather(slice(None)), test.gather(slice(None))
        _write(copies.mixed / "train", names, train_images, splits.train.labels, "train")
        _write(copies.mixed / "train", names, test_images, test.labels, "test")
        _write(copies.mixed / "test", names, _one_bit_off(test_images), test.labels, "test")
        some = _few_of_each(splits.train.labels)
        _write(copies.exact / "train", names, train_images[some], splits.train.labels[some], "train")
        _write(copies.exact / "train", names, test_images[few], test.labels[few], "test")
        _write(copies.exact / "test", names, test_images[few], test.labels[few], "test")
        (root / DONE).touch()
    return copies


def fine_tune_script(experiment: Experiment) -> None:
    """Run the script as published, its training on the test images included, with each seed; record it."""
    config = experiment.config
    splits, test = load_splits(config.data), load_test(config.data)
    for seed in experiment.seeds:
        if recorded_script(experiment, seed) is not None:
            continue
        print(f"── {_name(experiment, seed)}: our transcription of the published script", flush=True)
        found = script.start(
            experiment.name,
            (splits.train.gather(slice(None)), splits.train.labels),
            f"--epochs={config.trainer.max_epochs}",
            f"--seed={seed}",
            then=(test.gather(slice(None)), test.labels),
        )
        tracker = open_store(config.tracking).start_run(_name(experiment, seed), experiment.name, {})
        tracker.log_summary({BEFORE: found["before"], AFTER: found["after"]})
        tracker.finish("FINISHED")


def recorded_script(experiment: Experiment, seed: int) -> tuple[float, float] | None:
    """Return the recorded accuracies of the script before and after it trains on the test images, if any."""
    tracking = experiment.config.tracking
    if not store_exists(tracking):
        return None
    for run in find_runs(tracking, filter_string=f"attributes.run_name = '{_name(experiment, seed)}'")[::-1]:
        if AFTER in run.metrics:
            return run.metrics[BEFORE], run.metrics[AFTER]
    return None


def _name(experiment: Experiment, seed: int) -> str:
    """Return the name of the script's run; one on other data than the plan's has another."""
    return f"{experiment.name}-script-{experiment.config.data.kind}-seed{seed}"


def planted_that_train(experiment: Experiment, copies: Copies) -> int:
    """Return how many unchanged test images the harness would train on in the copy that holds some."""
    others = ("data.train_on_val=true", "model=lenet", "trainer.select=last", "data.batch_size=1")
    train = load_splits(compose_run([*_data_in(copies.exact, experiment), *others]).data).train
    assert train.part is not None
    names = [train.part.names[index] for index in train.indices]
    return sum(Path(name).name.startswith("test-") for name in names)


def _data_in(folder: Path, experiment: Experiment) -> tuple[str, ...]:
    """Return the settings that read a copy of the experiment's images, in their own size."""
    size = load_splits(experiment.config.data).train.images.shape[1]
    return "data=folder", f"data.dir={as_override_value(str(folder))}", f"data.decode_size={size}"


def _place(experiment: Experiment) -> Path:
    data = experiment.config.data
    splits = load_splits(data)
    return Path(data.cache_dir).resolve() / f"published-{splits.name}-{splits.digest[:12]}"


def _few_of_each(labels_N: np.ndarray) -> np.ndarray:
    """Return the positions of one image in `EXACT_SHARE`, at least three, of each class."""
    found = [np.flatnonzero(labels_N == label) for label in np.unique(labels_N)]
    return np.concatenate([positions[: max(3, len(positions) // EXACT_SHARE)] for positions in found])


def _one_bit_off(images_NHWC: np.ndarray) -> np.ndarray:
    changed = images_NHWC.copy()
    changed[:, 0, 0, 0] ^= 1
    return changed


def _write(
    folder: Path, class_names: tuple[str, ...], images_NHWC: np.ndarray, labels_N: np.ndarray, prefix: str
) -> None:
    """Write images as PNG files, which keep every bit, into a folder for each class."""
    for name in class_names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (pixels, label) in enumerate(zip(images_NHWC, labels_N, strict=True)):
        path = folder / class_names[label] / f"{prefix}-{number:05d}.png"
        Image.fromarray(pixels).save(path, compress_level=1)
