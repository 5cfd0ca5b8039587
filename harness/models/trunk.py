"""Where the frozen part of a network ends, what it computes, and how to go on from there.

The *trunk* is everything that runs before the first module that trains. Its output for an image never
changes, so it can be computed once and kept. Nothing here knows a particular architecture: one forward
pass with hooks shows in which order the modules run, and what was found is compared with the whole network.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models.classifier import ImageClassifier
from harness.models.freezing import depth_groups
from harness.models.protocol import head_names, heads, named_tensors

TOLERANCE = 1e-3  # of the largest activation, where the trunk's output and what follows are taken apart


@dataclass(frozen=True)
class Boundary:
    """Where the trunk ends if the last `depth` groups and the head train.

    Args:
        depth: depth groups behind it; 0 is a linear probe.
        entry: the first module that trains; what is kept is its input.
        passed: the topmost modules that have run by then.
    """

    depth: int
    entry: str
    passed: tuple[str, ...]


class _ReachedError(Exception):
    """The deepest entry was reached: what comes after need not be computed."""


def find_boundaries(
    classifier: ImageClassifier, images_BCHW: Tensor, depths: Sequence[int]
) -> dict[int, Boundary]:
    """Return, for each depth at which the network can be entered, where; other depths are left out.

    A depth is left out where a skip connection or a tensor outside of any module crosses the boundary.

    Args:
        images_BCHW: a few images, to see the network run.
    """
    if len(heads(classifier.network)) > 1:
        return {}
    try:
        groups = depth_groups(classifier.network)
    except ModelError:  # there are none, and a linear probe needs none
        groups = []
    events = _watch(classifier, images_BCHW)
    found = {}
    for depth in depths:
        if depth > len(groups):
            continue
        trainable = head_names(classifier.network).union(*groups[len(groups) - depth :])
        boundary = _boundary(classifier.network, events, trainable, depth)
        if boundary is not None and _joins(classifier, boundary, images_BCHW):
            found[depth] = boundary
    return found


@torch.no_grad()
def trunk_activations(
    classifier: ImageClassifier, images_BCHW: Tensor, boundaries: Sequence[Boundary]
) -> dict[int, Tensor]:
    """Return what enters the network's trainable part, for each boundary by its depth, from one pass.

    The network runs in eval mode, and no further than it must.
    """
    captured: dict[int, Tensor] = {}
    shallowest = min(boundary.depth for boundary in boundaries)

    def keep(boundary: Boundary) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            (captured[boundary.depth],) = inputs
            if boundary.depth == shallowest:
                raise _ReachedError

        return hook

    with _eval_mode(classifier), contextlib.ExitStack() as hooks:
        for boundary in boundaries:
            entry = classifier.network.get_submodule(boundary.entry)
            hooks.enter_context(_removed(entry.register_forward_pre_hook(keep(boundary))))
        with contextlib.suppress(_ReachedError):
            classifier(images_BCHW)
    return captured


def trunk_digest(classifier: ImageClassifier) -> str:
    """Return the sha256 (hex) of every tensor but the head's, and of their names."""
    head, digest = head_names(classifier.network), hashlib.sha256()
    for name, tensor in named_tensors(classifier.network):
        if name not in head:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ── looking at a network run ──────────────────────────────────────────────────────────────────────

Event = tuple[str, str]  # "enter" or "leave", a module's name


@torch.inference_mode()
def _watch(classifier: ImageClassifier, images_BCHW: Tensor) -> list[Event]:
    """Return the order in which the network's modules start and end."""
    events: list[Event] = []
    with _eval_mode(classifier), contextlib.ExitStack() as hooks:
        for name, module in classifier.network.named_modules():
            if name:
                enter = module.register_forward_pre_hook(lambda *_, name=name: events.append(("enter", name)))
                leave = module.register_forward_hook(lambda *_, name=name: events.append(("leave", name)))
                hooks.enter_context(_removed(enter))
                hooks.enter_context(_removed(leave))
        classifier(images_BCHW)
    return events


def _boundary(
    network: nn.Module, events: Sequence[Event], trainable: set[str], depth: int
) -> Boundary | None:
    """Return where the first module starts that trains as a whole, if nothing before it trains."""
    for index, (event, name) in enumerate(events):
        if event == "enter" and _trains_as_a_whole(network, name, trainable):
            entered = {later for kind, later in events[index:] if kind == "enter"}
            left = {earlier for kind, earlier in events[:index] if kind == "leave"}
            if left & entered or not all(_is_inside(tensor, entered) for tensor in trainable):
                return None
            passed = tuple(sorted(module for module in left if not _is_inside(module, left)))
            return Boundary(depth, name, passed)
    return None


def _trains_as_a_whole(network: nn.Module, name: str, trainable: set[str]) -> bool:
    held = [f"{name}.{tensor}" for tensor, _ in named_tensors(network.get_submodule(name))]
    return bool(held) and trainable.issuperset(held)


def _is_inside(name: str, modules: set[str]) -> bool:
    """Tell whether a module or tensor lies below one of `modules`."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in modules for length in range(1, len(parts)))


@torch.inference_mode()
def _joins(classifier: ImageClassifier, boundary: Boundary, images_BCHW: Tensor) -> bool:
    """Tell whether trunk and tail together compute what the whole network does."""
    try:
        with _eval_mode(classifier), _random_head(classifier):
            whole = classifier(images_BCHW)
            activations = trunk_activations(classifier, images_BCHW, [boundary])[boundary.depth]
            with entered_at(classifier, boundary):
                parts = classifier(activations)
    except Exception:  # each architecture that cannot be entered there fails in its own way
        return False
    return bool((whole - parts).abs().max() <= TOLERANCE * whole.abs().max())


@contextlib.contextmanager
def _random_head(classifier: ImageClassifier) -> Iterator[None]:
    """Give the head random weights for a while: a new one is all zeros and would hide what enters it."""
    head = classifier.network.get_classifier()  # type: ignore[operator]
    kept = {name: parameter.clone() for name, parameter in head.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    try:
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        yield
    finally:
        for name, parameter in head.named_parameters():
            parameter.copy_(kept[name])


@contextlib.contextmanager
def entered_at(classifier: ImageClassifier, boundary: Boundary) -> Iterator[None]:
    """Let the classifier take activations for a while, see :meth:`ImageClassifier.enter_at`."""
    classifier.enter_at(boundary.entry, boundary.passed)
    try:
        yield
    finally:
        classifier.enter_at_pixels()


@contextlib.contextmanager
def _eval_mode(classifier: ImageClassifier) -> Iterator[None]:
    was_training = classifier.training
    classifier.eval()
    try:
        yield
    finally:
        classifier.train(was_training)


@contextlib.contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
