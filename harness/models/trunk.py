"""Finds where the frozen part of a network ends, and computes the activations at that boundary.

The *trunk* is everything that runs before the first module that trains; the *boundary* is where it ends. The
trunk's output for an image never changes, so `harness.training.cached_features` computes it only once.

The boundary is found without knowing the architecture: hooks record the order in which modules run in one
forward pass. It is used only if the network computes the same logits from the trunk's output as from the
image, up to rounding. `ImageClassifier.enter_at` then lets the network start at the boundary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models.classifier import ImageClassifier
from harness.models.freezing import depth_groups
from harness.models.protocol import digest_of, head_names, heads, named_tensors

TOLERANCE = 1e-3  # for logits of the two parts and of the whole network, relative to the largest logit


@dataclass(frozen=True)
class Boundary:
    """The end of the trunk if the last `depth` groups and the head train.

    Args:
        depth: the number of depth groups after the boundary; 0 is a linear probe.
        entry: the name of the first module that trains. Its input is what the trunk computes.
        passed: the names of the modules that have finished before it, without their submodules.
    """

    depth: int
    entry: str
    passed: tuple[str, ...]


class _ReachedError(Exception):
    """The last boundary was reached: the rest of the forward pass is not needed."""


def find_boundaries(
    classifier: ImageClassifier, images_BCHW: Tensor, depths: Sequence[int]
) -> dict[int, Boundary]:
    """Return the boundary for each depth at which the network can be entered; other depths are left out.

    A depth is left out if a skip connection, or a tensor outside of any module, crosses the boundary: then
    the input of one module does not determine what follows.

    Args:
        images_BCHW: a few images, on which the network is run.
        depths: numbers of depth groups that train.
    """
    # Distilled networks have two heads: a linear probe would have two entries.
    if len(heads(classifier.network)) > 1:
        return {}
    try:
        groups = depth_groups(classifier.network)
    except ModelError:  # timm describes none; depth 0, the linear probe, needs none
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


def trunk_end(classifier: ImageClassifier, images_BCHW: Tensor, depth: int) -> Boundary | None:
    """Return the boundary for one depth; None if the network has none.

    Unlike `find_boundaries`, this compares no logits, so it also works on the meta device.
    """
    if len(heads(classifier.network)) > 1:
        return None
    groups = depth_groups(classifier.network) if depth else []
    trainable = head_names(classifier.network).union(*groups[len(groups) - depth :])
    return _boundary(classifier.network, _watch(classifier, images_BCHW), trainable, depth)


@torch.no_grad()
def trunk_activations(
    classifier: ImageClassifier, images_BCHW: Tensor, boundaries: Sequence[Boundary]
) -> dict[int, Tensor]:
    """Return the activations at each boundary, by depth, from one forward pass in eval mode.

    The pass ends at the boundary of the smallest depth, which is the last one that it reaches.
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
    """Return the SHA-256 (hex) of the names and values of all tensors but the head's."""
    head = head_names(classifier.network)
    return digest_of((name, one) for name, one in named_tensors(classifier.network) if name not in head)


# ── watching a network run ──────────────────────────────────────────────────────────────────────

Event = tuple[str, str]  # "enter" or "leave", a module's name


@torch.inference_mode()
def _watch(classifier: ImageClassifier, images_BCHW: Tensor) -> list[Event]:
    """Return the starts and ends of all modules during a forward pass, in order."""
    events: list[Event] = []
    with _eval_mode(classifier), contextlib.ExitStack() as hooks:
        for name, module in classifier.network.named_modules():
            # The root, whose name is empty, starts before everything and tells nothing.
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
    """Return the boundary before the first module that trains as a whole, if nothing before it trains."""
    for index, (event, name) in enumerate(events):
        if event == "enter" and _trains_as_a_whole(network, name, trainable):
            entered = {later for kind, later in events[index:] if kind == "enter"}
            left = {earlier for kind, earlier in events[:index] if kind == "leave"}
            # No module may run on both sides, and all that trains must lie in modules that start after the
            # boundary.
            if left & entered or not all(_is_inside(tensor, entered) for tensor in trainable):
                return None
            # A module that has only started (an outer stage) is not in `left`: its own forward pass must
            # still run.
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
    """Tell whether the trunk and then the network from its end on give the logits of the whole network."""
    try:
        with _eval_mode(classifier), _random_head(classifier):
            whole = classifier(images_BCHW)
            activations = trunk_activations(classifier, images_BCHW, [boundary])[boundary.depth]
            with entered_at(classifier, boundary):
                parts = classifier(activations)
    except Exception:  # each architecture that cannot be entered there fails in its own way
        return False
    # Not bit for bit: kernels may round otherwise when a pass starts in the middle.
    return bool((whole - parts).abs().max() <= TOLERANCE * whole.abs().max())


@contextlib.contextmanager
def _random_head(classifier: ImageClassifier) -> Iterator[None]:
    """Give the head random weights meanwhile: a new head is zero, and would hide differences in its input."""
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
    """Enter the classifier at a boundary within the block, see :meth:`ImageClassifier.enter_at`."""
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
