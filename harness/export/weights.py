"""Writes a bundle's weights, and builds the torch model from them again."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from harness.errors import ExportError, first_line
from harness.export.manifest import WEIGHTS_FILE, BundleConfig
from harness.export.predict import load_bundle
from harness.models import ImageClassifier, build_model


def save_weights(state_dict: dict[str, torch.Tensor], path: Path) -> None:
    """Write a state dict as safetensors; each name gets its own copy, also where tensors share memory."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    # Not safetensors' save_file: the file that it leaves can be read by its owner only.
    path.write_bytes(save(tensors))


def load_classifier(bundle_dir: str | Path) -> ImageClassifier:
    """Return the bundle's model with the weights of `model.safetensors`, on the CPU, in evaluation mode.

    Raises:
        ExportError: the folder is no bundle, or a file of it is missing, altered, or does not fit the others.
    """
    folder = Path(bundle_dir)
    return restore(load_bundle(folder).config, folder)


def restore(config: BundleConfig, folder: Path) -> ImageClassifier:
    """Return the model that `config` describes with the weights that lie in `folder`."""
    inside = config.preprocessing
    classifier = build_model(
        config.model, len(config.classes), mean=inside.mean, std=inside.std, load_weights=False
    )
    try:
        holder = classifier if config.format_version == 1 else classifier.network
        holder.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ExportError(
            f"{folder / WEIGHTS_FILE} cannot be loaded ({first_line(error)}): export the run again"
        ) from None
    return classifier.eval()
