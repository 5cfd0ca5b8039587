"""`export_checkpoint`: writes a bundle of a checkpoint: weights, ONNX graph, configuration, card, checksums.

`run.py` calls it. The files are written to a new folder beside the target and checked there; then that folder
is renamed to the target. So a failed export leaves no incomplete bundle, and an earlier bundle stays.
"""

from __future__ import annotations

import math
import platform
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.config.schema import DataConfig, FolderData, ScratchModel
from harness.data.splits import ImageArrays
from harness.errors import ExportError
from harness.export import manifest, parity
from harness.export.card import describe_model, render_card
from harness.export.checksums import write_checksums
from harness.export.int8 import measure_loss, write_int8
from harness.export.manifest import (
    BundleConfig,
    DataFacts,
    GraphInput,
    Int8Facts,
    Preprocessing,
    RunFacts,
)
from harness.export.onnx_graph import export_onnx
from harness.export.runners import onnx_runner, torch_runner
from harness.export.weights import restore, save_weights
from harness.files import slug
from harness.models import ImageClassifier
from harness.training.checkpoints.checkpoint import Checkpoint, load_checkpoint, restore_classifier

DECODE_RULE = (  # of harness.data.decoding.decode, in words
    "a file's image is turned upright (EXIF), laid on white where transparent, scaled to 8 bits if deeper"
    "{ranges}, its shorter side resized to {size} pixels (Pillow, bicubic), its centre cropped"
)
PACKAGES = ("harness", "torch", "timm", "onnx", "onnxruntime", "safetensors", "numpy", "pillow")
MACHINE_KEYS = (
    "dir",
    "cache_dir",
    "labels_csv",
)  # of `data`: folders of one machine, which a bundle does not disclose


@dataclass(frozen=True)
class ExportResult:
    """A bundle that was written and verified."""

    path: Path
    config: BundleConfig

    def __str__(self) -> str:
        """Return the lines shown after an export: the files, how exact they are, and what to type next."""
        config, agreed = self.config, self.config.parity
        split = "validation" if config.data.num_val_images else "training"
        is_multilabel = config.thresholds is not None
        kinds = "labels" if is_multilabel else "classes"
        agreement = "all labels equal" if is_multilabel else "top-1 agreement"
        names = [manifest.WEIGHTS_FILE, manifest.ONNX_FILE] + [manifest.INT8_FILE] * (config.int8 is not None)
        files = ", ".join(f"{name} {_megabytes(self.path / name)}" for name in names)
        shape = f"(batch, 3, {config.input.height}, {config.input.width})"
        return "\n".join(
            [
                f"{self.path}: {describe_model(config)}, {len(config.classes)} {kinds}, {files}",
                f"input    {config.input.name}: uint8 RGB, {shape}; output: logits",
                f"parity   torch and ONNX Runtime on {agreed.num_images} {split} images, batches of "
                f"{', '.join(map(str, agreed.batch_sizes))}:",
                f"         logits differ by {agreed.max_abs_difference:.2g} at most "
                f"(allowed {agreed.tolerance:.2g}), {agreement} {agreed.top1_agreement:.2%}",
                "reload   model.safetensors gives the checkpoint's logits bit for bit",
                *([] if config.int8 is None else [f"int8     {config.int8} ({split})"]),
                f"next     harness predict {self.path} image.png",
            ]
        )


@dataclass(frozen=True)
class Int8:
    """That a quantised model is wanted, too.

    Args:
        train_images: from which the ranges of its activations come.
        max_loss: of validation accuracy, beyond which nothing is exported.
    """

    train_images: ImageArrays
    max_loss: float


def export_checkpoint(
    checkpoint_path: Path,
    output_dir: Path,
    *,
    name: str,
    val_images: ImageArrays,
    facts: RunFacts,
    int8: Int8 | None = None,
    thresholds: Sequence[float] | None = None,
) -> ExportResult:
    """Write the bundle `output_dir/name`; it replaces an earlier one only after its checks have passed.

    Args:
        name: of the bundle: letters, digits, '-', '_' and '.'.
        val_images: torch and ONNX Runtime are compared on up to 256 of them.
        facts: what is known of the run, for the configuration and the card.
        int8: to write `model.int8.onnx`, too.
        thresholds: of a multi-label model's labels.

    Raises:
        ExportError: the model cannot be exported, fails parity, loses too much when it is quantised, or the
            target cannot be (over)written.
        CheckpointError: the checkpoint is missing or damaged.
    """
    target = _target(Path(output_dir), name)
    checkpoint = load_checkpoint(checkpoint_path)
    with _staging(target) as folder:
        config = _write(folder, checkpoint, name, val_images, facts, int8, thresholds)
        _replace(folder, target)
    return ExportResult(target, config)


# ── the files ─────────────────────────────────────────────────────────────────────────────────────


def _write(
    folder: Path,
    checkpoint: Checkpoint,
    name: str,
    val: ImageArrays,
    facts: RunFacts,
    int8: Int8 | None,
    thresholds: Sequence[float] | None,
) -> BundleConfig:
    classifier = restore_classifier(checkpoint)
    images_NCHW = parity.choose_images(val)
    graph_input = GraphInput(height=images_NCHW.shape[2], width=images_NCHW.shape[3])
    export_onnx(classifier, folder / manifest.ONNX_FILE, graph_input)
    save_weights(classifier.network.state_dict(), folder / manifest.WEIGHTS_FILE)
    exported = onnx_runner(folder / manifest.ONNX_FILE, graph_input)
    num_val = 0 if checkpoint.config.data.train_on_val else len(val)
    config = BundleConfig(
        name=name,
        classes=checkpoint.class_names,
        thresholds=None if thresholds is None else tuple(thresholds),
        input=graph_input,
        preprocessing=_preprocessing(classifier, graph_input.height, checkpoint.config.data),
        model=checkpoint.config.model,
        num_parameters=sum(parameter.numel() for parameter in classifier.parameters()),
        data=DataFacts(name=checkpoint.data_name, digest=checkpoint.data_digest, num_val_images=num_val),
        epoch=checkpoint.epoch,
        score=checkpoint.score if math.isfinite(checkpoint.score) else None,
        run=facts,
        parity=parity.check_parity(torch_runner(classifier), exported, images_NCHW, thresholds),
        int8=None if int8 is None else _quantise(folder, graph_input, val, int8),
        training=_portable(checkpoint.config.to_dict()),
        versions={"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        **_timm_section(classifier, checkpoint),
    )
    config.write(folder)
    (folder / manifest.CARD_FILE).write_text(render_card(config), encoding="utf-8")
    # The check loads the written files, as a recipient of the bundle will, and not the objects in memory.
    reloaded = restore(manifest.read_config(folder), folder)
    parity.check_identical(torch_runner(classifier), torch_runner(reloaded), images_NCHW)
    write_checksums(folder)  # last, as it covers every other file
    return config


def _quantise(folder: Path, graph_input: GraphInput, val: ImageArrays, int8: Int8) -> Int8Facts:
    onnx_file, path = folder / manifest.ONNX_FILE, folder / manifest.INT8_FILE
    count = write_int8(onnx_file, path, graph_input, int8.train_images)
    runners = onnx_runner(onnx_file, graph_input), onnx_runner(path, graph_input)
    return measure_loss(*runners, val, num_calibration_images=count, max_loss=int8.max_loss)


def _preprocessing(classifier: ImageClassifier, side: int, data: DataConfig) -> Preprocessing:
    inside = classifier.preprocess
    pixel_range = data.pixel_range if isinstance(data, FolderData) else {}
    ranges = ", ".join(f"{kind} {low:g} … {high:g}" for kind, (low, high) in pixel_range.items())
    return Preprocessing(
        decode_size=side,
        decode_rule=DECODE_RULE.format(size=side, ranges=f" ({ranges} to 0 … 255)" if ranges else ""),
        pixel_range=pixel_range,
        image_size=classifier.image_size,
        interpolation=inside.interpolation,
        mean=tuple(inside.mean.flatten().tolist()),
        std=tuple(inside.std.flatten().tolist()),
    )


def _timm_section(classifier: ImageClassifier, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what timm needs to build the network and its preprocessing; nothing if it is not timm's."""
    known: dict[str, Any] = classifier.network.pretrained_cfg  # type: ignore[assignment]
    model = checkpoint.config.model
    if isinstance(model, ScratchModel) or model.stem != "default":  # timm has no argument for our stem
        return {}
    inside = classifier.preprocess
    size = (3, inside.image_size, inside.image_size)
    is_fixed = bool(known.get("fixed_input_size"))
    return {
        "architecture": known["architecture"],
        "num_classes": len(checkpoint.class_names),
        "label_names": checkpoint.class_names,
        "model_args": {"img_size": inside.image_size} if is_fixed else {},
        "pretrained_cfg": {
            "input_size": size,
            "fixed_input_size": is_fixed,
            "mean": tuple(inside.mean.flatten().tolist()),
            "std": tuple(inside.std.flatten().tolist()),
            "interpolation": inside.interpolation,
            "crop_pct": 1.0,  # ours scales the shorter side to the size of the network and crops the centre
            "crop_mode": "center",
            "num_classes": len(checkpoint.class_names),
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


def _portable(training: dict[str, Any]) -> dict[str, Any]:
    """Return the training configuration without this machine's folders, as a bundle is given to others."""
    data = {key: value for key, value in training["data"].items() if key not in MACHINE_KEYS}
    return {key: value for key, value in training.items() if key != "tracking"} | {"data": data}


# ── the folder ────────────────────────────────────────────────────────────────────────────────────


def bundle_name(text: str) -> str:
    """Return a text as a bundle's name, which its folder bears."""
    return slug(text) or "model"


def _target(output_dir: Path, name: str) -> Path:
    if name != (possible := bundle_name(name)):
        raise ExportError(
            f"{name!r} cannot be a bundle's name: use letters, digits, '-', '_' and '.', as in {possible!r}"
        )
    target = output_dir / name
    if target.exists() and not (target / manifest.SUMS_FILE).is_file():
        raise ExportError(f"{target} exists and is not a bundle: move it away or export under another name")
    return target


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Yield a new folder beside the target; it is removed afterwards unless it was renamed to the target."""
    folder = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ExportError(
            f"cannot write to {target.parent} ({error.strerror}): choose another folder"
        ) from None
    try:
        yield folder
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ExportError(f"cannot write {target} ({reason}): free space or choose another folder") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(folder: Path, target: Path) -> None:
    """Rename a finished bundle to its target.

    A folder cannot be renamed onto another, so an earlier bundle is moved away first, and back on failure.
    """
    if not target.exists():
        folder.rename(target)
        return
    earlier = folder.with_name(folder.name + ".old")
    target.rename(earlier)
    try:
        folder.rename(target)
    except OSError:
        earlier.rename(target)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
