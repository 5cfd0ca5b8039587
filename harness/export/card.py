"""Renders a bundle's model card (its README.md) from its `config.json`; unknown facts are left out."""

from __future__ import annotations

from string import Template
from typing import Any

import yaml

from harness.export.manifest import BundleConfig, Preprocessing

DATASET_IDS = {"cifar10": "uoft-cs/cifar10"}  # of the Hugging Face hub
METRICS = (
    "accuracy", "accuracy_no_tta", "top5_accuracy", "balanced_accuracy", "precision", "recall", "f1", "auc",
    "mAP", "mAP_no_tta", "micro_f1", "exact_match", "f1_at_thresholds", "micro_f1_at_thresholds",
    "exact_match_at_thresholds", "loss", "brier", "ece",
)  # fmt: skip
SELECTION: dict[str, Any] = {  # settings that change what trains, and the values by which they do not
    "images_per_class": None,
    "imbalance_factor": 1.0,
    "label_noise": 0.0,
    "label_noise_pairs": {},
    "sampling": "natural",
}
SPLITS = {"val": "validation", "test": "test"}

CARD = Template("""\
---
$front_matter---

# $name

$summary

## Intended use

$use $num_classes (in the order of its outputs):

$classes

$limits Nothing was
measured beyond the tables below (no other data, no corruptions, no subgroups$uncalibrated).

## Data

$data

## Metrics

$metrics

## Training

$training

## Input and output

| | name | type | shape | meaning |
| --- | --- | --- | --- | --- |
| input | `$input_name` | uint8 | $input_shape | RGB, 0 to 255, channels first |
| output | `$output_name` | float32 | (batch, $num_classes) | logits: $function gives probabilities |

Done by the caller: $decode_rule.

Done inside the model: pixels are divided by 255,$resize normalised with mean $mean
and standard deviation $std.

## How to use it

With harness (any image file; needs no torch):

```sh
harness predict . image.png
```

With ONNX Runtime alone:

```python
import json

import numpy as np
import onnxruntime
from PIL import Image

config = json.load(open("config.json", encoding="utf-8"))
side = config["preprocessing"]["decode_size"]
image = Image.open("image.png").convert("RGB").resize((side, side))  # a square image; else crop it first
pixels = np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)[None]  # (1, 3, H, W)
session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(["$output_name"], {"$input_name": pixels})[0]
$answer
```

With torch, from `model.safetensors`:

```python
import torch

from harness.export.weights import load_classifier

classifier = load_classifier(".")  # evaluation mode, on the CPU
logits = classifier(torch.zeros(1, 3, $decode_size, $decode_size, dtype=torch.uint8))
```

$timm## Files

`model.safetensors` holds the weights, `model.onnx` the whole graph, `config.json` everything above in
machine-readable form. `sha256sum --check SHA256SUMS` tells whether they are unaltered.

torch and ONNX Runtime were compared when this bundle was written: on $parity_images $parity_split images in
batches of $parity_batches the logits differ by at most $parity_difference (allowed: $parity_tolerance), and
$parity_agreement of $agreed.
$int8""")
INT8 = """
`model.int8.onnx` is the same graph with 8-bit weights and activations, whose ranges come from {count}
training images. It has {facts} ({split}).
`harness predict --int8 . image.png` uses it.
"""


TIMM = """With timm alone, images prepared as the network expects them:

```python
import timm

network = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
```

"""


def render_card(config: BundleConfig) -> str:
    """Return the model card of a bundle, in Markdown with the front matter of the Hugging Face hub."""
    inside = config.preprocessing
    return CARD.substitute(
        front_matter=yaml.safe_dump(_front_matter(config), sort_keys=False, allow_unicode=True, width=110),
        name=config.name,
        summary=_summary(config),
        num_classes=len(config.classes),
        classes="\n".join(
            f"{index}. `{name}`{_threshold(config, index)}" for index, name in enumerate(config.classes)
        ),
        **(_OF_CLASSES if config.thresholds is None else _OF_LABELS),
        data=_data(config),
        metrics=_metrics(config),
        uncalibrated=""
        if any("ece" in values for values in _by_split(config).values())
        else ", no calibration",
        training=_training(config),
        input_name=config.input.name,
        input_shape=f"(batch, 3, {config.input.height}, {config.input.width})",
        output_name=config.output.name,
        decode_rule=inside.decode_rule,
        decode_size=inside.decode_size,
        resize=_resize(inside),
        mean=_numbers(inside.mean),
        std=_numbers(inside.std),
        timm=TIMM if config.architecture else "",
        int8=_int8(config),
        parity_images=config.parity.num_images,
        parity_split=_split(config),
        parity_batches=", ".join(map(str, config.parity.batch_sizes)),
        parity_difference=f"{config.parity.max_abs_difference:.2g}",
        parity_tolerance=f"{config.parity.tolerance:.2g}",
        parity_agreement=f"{config.parity.top1_agreement:.2%}",
    )


_OF_CLASSES = {
    "use": "The model names the class of one image, out of exactly these",
    "limits": "It has no answer for anything else: an image of something else gets one of these names too.",
    "function": "softmax",
    "answer": 'print(config["classes"][int(logits[0].argmax())])',
    "agreed": "the predicted classes are the same",
}
_OF_LABELS = {
    "use": "The model tells which labels one image has, any number of them or none, out of exactly these",
    "limits": "A label is given if its probability is above its threshold; each label is judged by itself.",
    "function": "a sigmoid each",
    "answer": "probabilities = 1 / (1 + np.exp(-logits[0]))\n"
    'named = zip(config["classes"], probabilities, config["thresholds"])\n'
    "print([name for name, probability, threshold in named if probability > threshold])",
    "agreed": "the images have the same labels",
}


def _threshold(config: BundleConfig, index: int) -> str:
    return "" if config.thresholds is None else f", above {config.thresholds[index]:.3f}"


def _split(config: BundleConfig) -> str:
    return "validation" if config.data.num_val_images else "training"


def _int8(config: BundleConfig) -> str:
    facts = config.int8
    if facts is None:
        return ""
    return INT8.format(count=facts.num_calibration_images, split=_split(config), facts=facts)


def describe_model(config: BundleConfig) -> str:
    """Return the usual name of the architecture."""
    return config.model.name if config.model.kind == "timm" else config.model.kind


def _resize(inside: Preprocessing) -> str:
    if inside.image_size == inside.decode_size:
        return ""
    return f" resized to {inside.image_size} × {inside.image_size} ({inside.interpolation}, antialiased) and"


def _front_matter(config: BundleConfig) -> dict[str, Any]:
    dataset: dict[str, str] = {
        "name": config.data.name,
        "type": DATASET_IDS.get(config.data.name, config.data.name),
    }
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": dataset | {"split": SPLITS[split]},
            "metrics": [{"type": metric, "value": round(value, 6)} for metric, value in values.items()],
        }
        for split, values in _by_split(config).items()
    ]
    front: dict[str, Any] = {
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "onnx", "safetensors", describe_model(config)],
    }
    if config.data.name in DATASET_IDS:
        front["datasets"] = [dataset["type"]]
    if results:
        front["model-index"] = [{"name": config.name, "results": results}]
    return front


def _summary(config: BundleConfig) -> str:
    start = "from pretrained weights" if _is_pretrained(config) else "from random weights"
    what = f"`{describe_model(config)}` ({config.num_parameters:,} parameters), trained {start} to"
    count, data = len(config.classes), config.data.name
    if config.thresholds is not None:
        return f"{what} tell which of {count} labels an image of `{data}` has."
    return f"{what} classify the images of `{data}` into {count} classes."


def _is_pretrained(config: BundleConfig) -> bool:
    return config.model.is_pretrained


def _by_split(config: BundleConfig) -> dict[str, dict[str, float]]:
    """Return the known metrics as {"val": {"accuracy": …}, "test": …}, without empty splits."""
    of_epoch = {} if config.score is None else {_monitor(config): config.score}
    known = config.run.metrics or of_epoch
    tables = {
        split: {m: known[f"{split}/{m}"] for m in METRICS if f"{split}/{m}" in known} for split in SPLITS
    }
    return {split: values for split, values in tables.items() if values}


def _monitor(config: BundleConfig) -> str:
    """Return the metric by which the epoch was chosen: with earlier versions, always `val/accuracy`."""
    monitor: dict[str, str] = config.training.get("trainer", {}).get("monitor", {})
    return monitor.get("metric", "val/accuracy")


def _data(config: BundleConfig) -> str:
    data = config.training.get("data", {})
    subset = data.get("max_train_samples")
    used = f"\nTrained on a stratified subset of {subset:,} training images." if subset else ""
    asked = [
        f"data.{key}={data[key]}" for key in SELECTION if data.get(key, SELECTION[key]) != SELECTION[key]
    ]
    used += f"\nTraining images and labels were chosen by {', '.join(asked)}." if asked else ""
    held = f"validated on {config.data.num_val_images:,} images that it was not trained on"
    if config.training.get("data", {}).get("train_on_val"):
        held = "trained on the training and the validation images together, without validation"
    return f"`{config.data.name}`, {held}.{used}\nDigest of pixels, labels and split: `{config.data.digest}`."


def _metrics(config: BundleConfig) -> str:
    tables = _by_split(config)
    names = [metric for metric in METRICS if any(metric in values for values in tables.values())]
    lines = [_row("split", names), _row("---", ["---"] * len(names))]
    for split, values in tables.items():
        lines.append(_row(SPLITS[split], [f"{values[m]:.4f}" if m in values else "" for m in names]))
    notes = [_selection_note(config, "test" in tables), _calibration_note(config)]
    notes += [_threshold_note(config), _augmentation_note(config)]
    return "\n".join([*lines, "", *filter(None, notes)])


def _row(first: str, cells: list[str]) -> str:
    return "| " + " | ".join([first, *cells]) + " |"


def _selection_note(config: BundleConfig, has_test: bool) -> str:
    is_last = config.training.get("trainer", {}).get("select") == "last"
    by = _monitor(config).removeprefix("val/")
    chosen = "The last epoch was kept" if is_last else f"The epoch was chosen by validation {by}"
    if config.run.is_best_of_sweep:
        count = f" of {config.run.num_trials} trials" if config.run.num_trials else ""
        chosen += f", and this run on the same images, as the best{count} of the sweep `{config.run.sweep}`"
    test = _test_note(config) if has_test else "The test split was not evaluated."
    averages = "Precision, recall, F1 and AUC are macro averages."
    is_chosen = config.run.is_best_of_sweep or not is_last
    flattery = ": the validation figures flatter it" if is_chosen else ""
    return f"{averages} {chosen}{flattery}. {test}"


def _test_note(config: BundleConfig) -> str:
    what = "sweep" if config.run.sweep else "run"
    match config.run.test_readings:
        case None | 0:
            return "The program chose nothing by the test split; how often it was read was not recorded."
        case 1:
            return f"The test split was read once for this {what}, after everything was chosen."
        case count:
            return (
                f"The test split was read {count} times for this {what} (its record says when): the program "
                "chose nothing by it, but whoever decided something between two readings did."
            )


def _calibration_note(config: BundleConfig) -> str:
    known = config.run.metrics
    if (temperature := known.get("val/temperature")) is None:
        return ""
    tested = known.get("test/ece_calibrated")
    after = "" if tested is None else f"; on the test split the ece is {tested:.4f} then"
    return (
        "`ece` is the expected calibration error. Divided by the temperature that was fitted on the "
        f"validation images, {temperature:.3f}, the logits have their lowest loss there{after}."
    )


def _threshold_note(config: BundleConfig) -> str:
    if config.thresholds is None:
        return ""
    if not config.data.num_val_images:
        return "Each label's threshold is 0.5: there were no validation images to choose it on."
    return (
        "mAP is the mean over the labels of the average precision; the other figures are of answers above "
        "0.5, those `at_thresholds` above each label's threshold. This was chosen on the validation images "
        "for the label's highest F1 there, so these figures are optimistic on validation."
    )


def _augmentation_note(config: BundleConfig) -> str:
    tta = config.training.get("evaluation", {}).get("tta", "none")
    if tta == "none":
        return ""
    return (
        f"The figures are those of test-time augmentation (`{tta}`: the logits of several views of an image, "
        "averaged). The exported network has none of it: "
        + (
            "where known, its accuracy is `accuracy_no_tta`."
            if config.thresholds is None
            else "where known, its mAP is `mAP_no_tta`; the thresholds above were chosen anew without it."
        )
    )


def _training(config: BundleConfig) -> str:
    run = f"Run `{config.run.run_id}`, " if config.run.run_id else "Exported at "
    settings = yaml.safe_dump(config.training, sort_keys=False, allow_unicode=True)
    versions = ", ".join(f"{name} {version}" for name, version in config.versions.items())
    return f"{run}epoch {config.epoch + 1}, with {versions}.\n\n```yaml\n{settings}```"


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
