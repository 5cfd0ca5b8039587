"""Reads a file of weights of any origin into a state dict, or says in one line what the file is instead.

`pretrained.py` reads pretrained weights with it. `harness.export.weights` reads exported bundles by itself.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness.errors import ModelError, first_line

BUNDLE_WEIGHTS = "model.safetensors"  # in the folder of an exported bundle, or in timm's own layout
_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "net", "params")
_START_BYTES = 512  # enough to tell what a file is


def read_state_dict(path: str | Path, source: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, .pth, .pt, .bin or .ckpt file, or of an exported bundle's folder.

    In a checkpoint that holds more than weights, the weights are searched for, averaged ones (EMA) first.

    Args:
        source: the name of the file, for messages; by default its path.

    Raises:
        ModelError: the file cannot be read; the message says what it is instead.
    """
    file, source = Path(path).expanduser(), source or str(path)
    if file.is_dir():
        file = file / BUNDLE_WEIGHTS
    if not file.is_file():
        raise ModelError(
            f"{source} is not a file: give a .safetensors, .pth or .bin file, or a bundle's folder"
        )
    try:
        with file.open("rb") as stream:
            start = stream.read(_START_BYTES)
    except OSError as error:
        raise ModelError(f"{source} cannot be read ({error.strerror})") from None
    if nature := _what_else_it_is(file, start):
        raise ModelError(f"{source} {nature}")
    if _is_safetensors(start):
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{source} is a damaged safetensors file ({first_line(error)})") from None
    return _tensors_of(_unpickle(source, file), source)


def _what_else_it_is(file: Path, start: bytes) -> str | None:
    text = start.lstrip().lower()
    if not start:
        return "is empty (0 bytes): fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights themselves: run `git lfs pull` where it came from"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not weights: the download gave a page (a login, or a preview); fetch the file"
    if start.startswith(b"PK") and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith(".npy") for name in archive.namelist()):
                return "is a numpy archive (.npz), a publisher's own format: convert it to .safetensors first"
    return None


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 30


def _unpickle(source: str, file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers fail in as many ways as there are files
        if "weights_only" in str(error).lower() or "Unsupported global" in str(error):
            raise ModelError(
                f"{source} is a pickle of Python objects, not a state dict, and is not opened, as it "
                "could run anything: save `model.state_dict()` where it was made"
            ) from None
        raise ModelError(f"{source} is not a file of weights ({first_line(error)})") from None


def _tensors_of(content: Any, source: str) -> dict[str, Tensor]:
    """Return the state dict in an unpickled object, where other dicts may wrap it."""
    if isinstance(content, Mapping):
        tensors = {
            name: value
            for name, value in content.items()
            if isinstance(name, str) and isinstance(value, Tensor)
        }
        if tensors:
            return tensors
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping) and content[wrapper]:
                return _tensors_of(content[wrapper], source)
        keys = ", ".join(map(repr, list(content)[:3]))
        raise ModelError(f"{source} holds no state dict: its keys are {keys or 'none'}")
    raise ModelError(
        f"{source} is a pickle of a {type(content).__name__}, not a state dict: save `model.state_dict()`"
    )


def without_prefix(state: dict[str, Tensor], expected: Iterable[str]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors under the network's own names, and the prefix that was removed (or "").

    A module that wraps a network puts the name of its attribute before all names: ``module.``, ``model.``,
    ``classifier.network.``. The removed prefix is the one that turns the most names into the network's.

    Args:
        expected: the names of the network's tensors.
    """
    known = set(expected)
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in known:
                counts["".join(part + "." for part in parts[:depth])] += 1
    prefix = max(counts, key=lambda candidate: (counts[candidate], -len(candidate)), default="")
    if not prefix or 2 * counts[prefix] < len(known):  # a publisher's names can match by chance
        return state, ""
    return {
        name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)
    }, prefix
