"""Rows about searches: cached features, trials per hour, the start of a trial, memory, `make speedrun`."""

from __future__ import annotations

import functools
import json
import statistics
from pathlib import Path

from experiments.performance import searching, training
from experiments.performance.measurement import Outcome, Row, Side, Skip, alternate, compare
from experiments.performance.place import FEW_VAL, FEW_VAL_SCALE, HAS_FEATURE_CACHE, SPEED_MODEL, Place
from experiments.performance.searching import slowest_trial, sweep, usual_trial
from experiments.performance.usual_script import Mode

SPEEDRUN = Path(__file__).parents[1] / "speedrun.json"
WIDE_EPOCHS = 2
START_TRIALS = 4  # the first one is not counted
PROBE_BATCH = 128

# The trials of the default sweep, apart from the numbers of images and epochs.
PROBE = (
    "finetune=linear_probe",
    "model.image_size=64",
    "augment=none",
    "augment.flip=true",
    f"data.batch_size={PROBE_BATCH}",
)


def probe_trials_per_hour(place: Place) -> Outcome:
    """Measure a whole sweep of the harness, which takes minutes, so only once.

    No earlier row may have cached these features, as their extraction is to be counted.
    """
    _require_feature_cache()
    scale, images = place.scale, place.available(place.scale.probe_images)
    num_trials, epochs = scale.probe_trials, scale.probe_epochs

    def harness() -> float:
        more = [place.limit(images), f"trainer.max_epochs={epochs}", f"sweep.num_trials={num_trials}"]
        return num_trials / sweep(place, "probe", [*PROBE, *more]).seconds * 3600

    def usual() -> float:
        return 3600 / _usual_seconds(place, "linear_probe", scale.fraction_images, images, epochs)

    note = (
        f"{num_trials} trials of {epochs} epochs of {images:,} images at 64 px, extraction included, in "
        f"full; once, since it takes minutes. {_usual_note(place, scale.fraction_images)}"
    )
    return compare(alternate(1, harness, usual), ("harness", "usual script"), "trials/h", note=note)


def cached_probe(place: Place) -> Outcome:
    _require_feature_cache()
    epochs, images = place.scale.probe_epochs, place.available(place.scale.probe_images)
    measured = place.available(place.scale.fraction_images)
    shape = ["model=efficientnet_lite0", *PROBE]
    full = place.overrides(*shape, place.limit(images), f"trainer.max_epochs={epochs}")
    part = place.overrides(
        *shape, place.limit(measured), FEW_VAL, "trainer.max_epochs=1", "finetune.cache_features=false"
    )

    def cached() -> float:
        return place.run(training.run_timing, full).total_s

    def uncached() -> float:
        return place.run(training.run_timing, part).scaled(images / measured, FEW_VAL_SCALE, epochs)

    cached()  # the first trial, which extracts if no row before this one did
    note = (
        f"a whole run of {epochs} epochs of {images:,} images; uncached is measured on one epoch of "
        f"{measured:,} training images, a fifth of the validation images, and scaled"
    )
    pairs = alternate(place.scale.repeats, cached, uncached)
    return compare(pairs, ("cached", "uncached"), "s", less_is_better=True, note=note)


def wide_trials_per_hour(place: Place) -> Outcome:
    images = place.available(place.scale.wide_images)
    names = iter(range(place.scale.repeats))
    shape = ["model=wide_cnn", "model.image_size=32", "finetune=full", "augment=standard"]
    size = [f"data.batch_size={min(PROBE_BATCH, images)}", place.limit(images), FEW_VAL]
    more = [f"trainer.max_epochs={WIDE_EPOCHS}", "sweep.num_trials=2", "sweep.slots=2"]

    def harness() -> float:
        ended = sweep(place, f"wide-{next(names)}", [*shape, *size, *more])
        side_by_side = slowest_trial(place, ended, images)
        return 2 * 3600 / side_by_side.scaled(place.num_train / images, FEW_VAL_SCALE, WIDE_EPOCHS)

    def usual() -> float:
        return 3600 / _usual_seconds(place, "wide_cnn", images, place.num_train, WIDE_EPOCHS)

    note = (
        f"trials of {WIDE_EPOCHS} epochs, the harness's two at a time; both sides measured on {images:,} "
        f"training images, the harness's on a fifth of the validation images; epochs scaled to "
        f"{place.num_train:,}. {_usual_note(place, images)}"
    )
    pairs = alternate(place.scale.repeats, harness, usual)
    return compare(pairs, ("harness", "usual script"), "trials/h", note=note)


def trial_start(place: Place) -> Outcome:
    overrides = [*PROBE, place.limit(place.scale.probe_images)]
    values = searching.start_seconds(place, "start", overrides, START_TRIALS)
    note = "from the scheduler's launch to the first training step: EfficientNet-Lite0, linear probe at 64 px"
    return Outcome(tuple(values), note=note)


def memory(place: Place, *, further: bool) -> Outcome:
    pairs = _peaks(place)
    two, one = (tuple(side) for side in zip(*pairs, strict=True))
    note = (
        f"{SPEED_MODEL}, batch {place.scale.speed_batch}; proportional set size of coordinator, fork server "
        "and trials together, sampled through the first two training steps"
    )
    if not further:
        return Outcome(one, note=note)
    sides = (Side("two trials", two, "GB"), Side("one trial", one, "GB"))
    return Outcome(tuple(b - a for b, a in pairs), sides, note)


@functools.cache  # two rows read it
def _peaks(place: Place) -> list[tuple[float, float]]:
    """Return the peak memory (GB) of sweeps of two trials at a time and of one."""
    overrides = [f"model={SPEED_MODEL}", "model.image_size=32", "finetune=full", "augment=standard"]
    overrides += [f"data.batch_size={place.scale.speed_batch}", "data.max_train_samples=null"]
    names = iter(range(2 * place.scale.repeats))

    def peak(slots: int) -> float:
        return searching.peak_gigabytes(place, f"memory-{next(names)}", overrides, slots)

    return alternate(place.scale.repeats, lambda: peak(2), lambda: peak(1))


def speedrun(field: str, factor: float = 1.0) -> Outcome:
    if not SPEEDRUN.is_file():
        raise Skip("a seed takes many minutes, so it is not run here: make speedrun")
    runs = json.loads(SPEEDRUN.read_text(encoding="utf-8"))["runs"]
    seconds = Side("wall time", tuple(float(run["seconds"]) for run in runs), "s")
    seeds = ", ".join(str(run["seed"]) for run in runs)
    values = tuple(factor * float(run[field]) for run in runs)
    return Outcome(
        values, (seconds,), f"of the last `make speedrun` (seeds {seeds}), not measured in this run"
    )


def _require_feature_cache() -> None:
    if not HAS_FEATURE_CACHE:
        raise Skip("this checkout has no finetune.cache_features")


def _usual_seconds(place: Place, mode: Mode, measured: int, images: int, epochs: int) -> float:
    """Return the seconds of one trial of the usual script, scaled to `images` and to `epochs`."""
    measured, num_val = place.available(measured), min(place.scale.fraction_val, place.num_val)
    overrides = place.overrides("model=lenet", place.limit(measured), "data.batch_size=1")
    timing = place.run(usual_trial, overrides, mode, num_val, str(place.folder / "usual"))
    return timing.scaled(images / measured, place.num_val / num_val, epochs)


def _usual_note(place: Place, images: int) -> str:
    num_val = min(place.scale.fraction_val, place.num_val)
    return (
        f"The usual script is measured on {place.available(images):,} training and {num_val:,} validation "
        "images; its second epoch is scaled, what is around the epochs is not. Imports are counted on "
        "neither side"
    )


ROWS = (
    Row(
        "probe_trials",
        "trials per hour: 8 linear probes of 10 epochs, 64 px, extraction included",
        100,
        probe_trials_per_hour,
        240,
    ),
    Row("wide_trials", "trials per hour: 4 wide_cnn of 2 epochs", 4, wide_trials_per_hour, 90),
    Row("cached_probe", "second and later linear probes, cached against uncached", 50, cached_probe, 70),
    Row(
        "trial_start",
        "start of a trial after the first",
        0.5,
        trial_start,
        20,
        unit="s",
        at_least=False,
    ),
    Row(
        "memory_one",
        "peak memory of one CIFAR-10 training",
        3.0,
        lambda p: memory(p, further=False),
        80,
        unit="GB",
        at_least=False,
    ),
    Row(
        "memory_further",
        "peak memory of each further parallel trial",
        1.5,
        lambda p: memory(p, further=True),
        0,
        unit="GB",
        at_least=False,
    ),
    Row(
        "speedrun_accuracy",
        "speedrun: mean test accuracy",
        94.0,
        lambda _: speedrun("test_accuracy", 100.0),
        0,
        unit="%",
        middle=statistics.fmean,
    ),
    Row(
        "speedrun_ratio",
        "speedrun: seconds × matmul FLOP/s ÷ 0.29 PFLOP",
        1.5,
        lambda _: speedrun("ratio"),
        0,
        at_least=False,
        middle=statistics.fmean,
    ),
)
