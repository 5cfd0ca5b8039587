"""Rows about one training process: input pipeline, precision and layout, overhead, recording."""

from __future__ import annotations

from statistics import median
from typing import Any

from experiments.performance import augmenting, training
from experiments.performance.measurement import Outcome, Row, Side, alternate, compare
from experiments.performance.place import FEW_VAL, SPEED_MODEL, Place
from experiments.performance.searching import recording_seconds

EPOCH_S = 10.0  # of an epoch; the time of recording it is given as a percentage of this
RECORDED_EPOCHS = 20
LENET_BATCH = RESNET_BATCH = 128


def model_overrides(place: Place, model: str, batch_size: int) -> list[str]:
    return place.overrides(f"model={model}", f"data.batch_size={batch_size}", "augment=standard")


def input_pipeline(place: Place, batch_size: int) -> Outcome:
    overrides = model_overrides(place, "wide_cnn", batch_size)
    seconds = place.scale.input_seconds
    pairs = alternate(
        place.scale.repeats,
        lambda: place.run(training.harness_input, overrides, seconds),
        lambda: place.run(training.usual_input, overrides, seconds),
    )
    names = ("harness", "DataLoader, 2 workers, PIL + torchvision")
    return compare(pairs, names, "images/s", note="crop of 4 reflected pixels, flip, normalise; fp32 out")


def auto_against_defaults(place: Place, model: str, batch_size: int) -> Outcome:
    overrides = model_overrides(place, model, batch_size)
    seconds = place.scale.step_seconds
    pairs = alternate(
        place.scale.repeats,
        lambda: place.run(training.auto_steps, overrides, seconds),
        lambda: place.run(training.default_steps, overrides, seconds),
    )
    machine = place.run(training.describe_machine, overrides)
    note = f"{model}, batch {batch_size}. " + ceiling(machine, sorted(default for _, default in pairs))
    return compare(pairs, ("auto", "fp32, contiguous, default memory"), "images/s", note=note)


def ceiling(machine: dict[str, Any], defaults: list[float]) -> str:
    """Describe what `auto` has chosen, and how close the defaults come to the machine's limit."""
    auto, matmul = machine["auto"], machine["matmul_flops"]
    reached = machine["flops_per_image"] * defaults[len(defaults) // 2]
    best = matmul[auto["precision"]] if auto["precision"] in matmul else max(matmul.values())
    return (
        f"auto = {auto['precision']}, {auto['memory_format']}, blocks kept, {auto['threads']} threads. "
        f"Matmul: fp32 {matmul['fp32'] / 1e9:.0f} GFLOP/s, bf16 {matmul['bf16'] / 1e9:.0f}. "
        f"{machine['flops_per_image'] / 1e9:.2f} GFLOP an image: the defaults run at {reached / 1e9:.0f} "
        f"GFLOP/s, {reached / matmul['fp32']:.0%} of the fp32 matmul rate. At the whole rate of "
        f"{auto['precision']} matmul the ratio would be {best / reached:.1f}×, which is about the limit here"
    )


def harness_against_bare(place: Place, model: str, batch_size: int, images: int) -> Outcome:
    overrides = model_overrides(place, model, batch_size)
    overrides += [place.limit(images), FEW_VAL]  # validation is not timed
    pairs = alternate(
        place.scale.repeats,
        lambda: place.run(training.harness_epoch, overrides, place.num_train),
        lambda: place.run(training.bare_epoch, overrides),
    )
    note = (
        f"{model}, batch {batch_size}, second epoch, measured on {place.available(images):,} images; the "
        f"harness's includes its checkpoint and its record in MLflow, once in {place.num_train:,} images; "
        "neither includes validation"
    )
    return compare(pairs, ("harness", "bare PyTorch loop"), "images/s", note=note)


def recording(place: Place) -> Outcome:
    seconds = [
        place.run(recording_seconds, place.overrides(), RECORDED_EPOCHS) for _ in range(place.scale.repeats)
    ]
    tracked, told = zip(*seconds, strict=True)
    percent = tuple(100 * sum(pair) / EPOCH_S for pair in seconds)
    milliseconds = [
        Side(name, tuple(1000 * s for s in side), "ms an epoch")
        for name, side in (("MLflow on SQLite", tracked), ("Optuna: report and prune", told))
    ]
    return Outcome(percent, tuple(milliseconds), f"median of {RECORDED_EPOCHS} epochs ÷ {EPOCH_S:g} s")


def augmentation(place: Place) -> Outcome:
    """Compare every augmentation with the fastest library that has it; the slowest ratio is the value."""
    overrides = model_overrides(place, "lenet", LENET_BATCH)
    runs = [
        place.run(augmenting.measure, overrides, place.scale.augment_seconds)
        for _ in range(place.scale.repeats)
    ]
    ratios = [min(ours / max(libraries.values()) for _, ours, libraries in run if libraries) for run in runs]
    table = [("augmentation", "harness", "libraries, image by image", "ratio")]
    for of_technique in zip(*runs, strict=True):
        name, _, libraries = of_technique[0]
        ours = median(rate for _, rate, _ in of_technique)
        theirs = {library: median(rates[library] for _, _, rates in of_technique) for library in libraries}
        listed = "; ".join(f"{library}: {rate:,.0f}" for library, rate in theirs.items()) or "–"
        ratio = f"{ours / max(theirs.values()):.1f}×" if theirs else "–"
        table.append((name, f"{ours:,.0f}", listed, ratio))
    note = (
        f"images per second of CPU time of one thread, 32 pixels, batches of {augmenting.BATCH:,}; medians "
        f"of {len(runs)}. The value is the smallest ratio to the fastest library of a technique. Mixup and "
        "cutmix of timm take batches; all else is drawn and applied image by image, as in a data loader"
    )
    return Outcome(tuple(ratios), note=note, table=tuple(table))


ROWS = (
    Row("input_512", "input pipeline alone, batch 512", 10, lambda p: input_pipeline(p, 512), 30),
    Row("input_128", "input pipeline alone, batch 128", 5, lambda p: input_pipeline(p, 128), 30),
    Row(
        "auto_speed",
        "training, auto against fp32 defaults: the speed CNN",
        4,
        lambda p: auto_against_defaults(p, SPEED_MODEL, p.scale.speed_batch),
        60,
    ),
    Row(
        "auto_resnet18",
        "training, auto against fp32 defaults: resnet18",
        3,
        lambda p: auto_against_defaults(p, "resnet18", min(RESNET_BATCH, p.scale.speed_batch)),
        90,
    ),
    Row(
        "bare_speed",
        "training, harness against a bare loop: the speed CNN",
        0.97,
        lambda p: harness_against_bare(p, SPEED_MODEL, p.scale.speed_batch, p.scale.speed_images),
        90,
    ),
    Row(
        "bare_lenet",
        "training, harness against a bare loop: lenet, batch 128",
        0.90,
        lambda p: harness_against_bare(p, "lenet", LENET_BATCH, p.scale.lenet_images),
        30,
    ),
    Row("augment", "augmentation, the least of all ratios to the fastest library", 1, augmentation, 50),
    Row("recording", "recording's share of an epoch of 10 s", 1.0, recording, 10, unit="%", at_least=False),
)
