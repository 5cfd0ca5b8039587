"""The one reader of weights: from a file of any origin to a state dict, or a line that says what it is."""

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

BUNDLE_WEIGHTS = "model.safetensors"  # of a folder: an exported bundle, or timm's own layout
_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "net", "params")
_START_BYTES = 512  # enough to tell what a file is


def read_state_dict(path: str | Path, source: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, .pth, .pt, .bin or .ckpt file, or of an exported bundle's folder.

    Of a checkpoint that holds more than weights, the weights are found, averaged ones (EMA) first.

    Args:
        source: what a message calls the file; by default its path.

    Raises:
        ModelError: it cannot be read; the line says what the file really is.
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
    """Return the state dict in what was unpickled, which may lie in other dicts."""
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
    """Return the tensors under the network's own names, and the prefix that was taken off (or "").

    Whatever wraps a network puts its attribute's name before all of them: ``module.``, ``model.``,
    ``classifier.network.``. The prefix is that with which most names are the network's.
    """
    known = set(expected)
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in known:
                counts["".join(part + "." for part in parts[:depth])] += 1
    prefix = max(counts, key=lambda candidate: (counts[candidate], -len(candidate)), default="")
    if not prefix or 2 * counts[prefix] < len(known):  # a publisher's own names may match here and there
        return state, ""
    return {
        name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)
    }, prefix
