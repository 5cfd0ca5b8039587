"""Applies a finetuning policy to a network, and divides a network into depth groups.

The policies are in `harness.config.finetune`. `harness.training.train` calls `apply_freezing`; `trunk.py`
uses the depth groups to find where a frozen part ends.

Depth groups are timm's coarse ones: the stem, then one group per stage. Three rules make "the last k groups"
mean what a person expects:

* the head (`get_classifier()`) belongs to no group and always trains;
* tensors after the last stage (a final norm, a head convolution, a neck) belong to the last group;
* a group without a weight of two or more dimensions (a lone batch norm) belongs to the group before it.

Every parameter and buffer is in exactly one group or in the head. Only the policy `partial` uses groups: the
others also work for networks whose depth timm does not describe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from timm.models import group_parameters
from timm.models._manipulate import group_with_matcher  # group_parameters leaves out buffers
from torch import nn

from harness.config.finetune import Lora
from harness.config.schema import FinetuneConfig
from harness.errors import ModelError
from harness.models.classifier import ImageClassifier
from harness.models.lora import adapter_names, insert_adapters
from harness.models.protocol import TimmNetwork, head_names, named_tensors
from harness.models.sync_norm import batch_norms

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_BIASES = {"bias", "q_bias", "k_bias", "v_bias"}  # the latter three of some attention layers of timm
_UNMATCHED = "\0"  # a name that no pattern matches: its group holds all tensors that timm cannot place


@dataclass(frozen=True)
class FreezeReport:
    """The outcome of `apply_freezing`, to be printed and recorded."""

    policy: str
    trainable_parameters: int
    frozen_parameters: int
    num_groups: int  # depth groups of the backbone, where the policy asks for them; the head is not one
    trainable_groups: tuple[str, ...]  # the names of the modules in each, shallow to deep
    trains: str  # what trains, see `FinetunePolicy.in_words`
    num_adapted: int = 0  # layers that have adapters

    def __str__(self) -> str:
        total = self.trainable_parameters + self.frozen_parameters
        names = (
            f" ({', '.join(self.trainable_groups)})"
            if 0 < len(self.trainable_groups) < self.num_groups
            else ""
        )
        groups = f"{len(self.trainable_groups)} of {self.num_groups} depth groups{names}"
        what = self.trains.format(groups=groups, adapted=self.num_adapted)
        return (
            f"{self.policy}: {self.trainable_parameters:,} of {total:,} parameters train "
            f"({self.trainable_parameters / total:.1%}): {what}"
        )


class NetworkNames:
    """A network's tensors by name, for a policy to choose from (`harness.config.finetune.TensorNames`)."""

    def __init__(self, network: nn.Module) -> None:
        self.everything = frozenset(name for name, _ in named_tensors(network))
        self.head = frozenset(head_names(network))
        in_norms = {
            id(tensor)
            for module in network.modules()
            if isinstance(module, _NORMS)
            for _, tensor in named_tensors(module)
        }
        self.norms = frozenset(name for name, tensor in named_tensors(network) if id(tensor) in in_norms)
        self.biases = frozenset(
            name for name, _ in network.named_parameters() if name.rpartition(".")[2] in _BIASES
        )
        self.adapters = frozenset(adapter_names(network))
        self._network = network

    def layers_above(self) -> dict[str, int]:
        try:
            matcher = cast(TimmNetwork, self._network).group_matcher(coarse=False)
            layers = group_parameters(self._network, matcher, reverse=True)
        except Exception as error:  # each network without usable patterns fails in its own way
            raise _without_groups(self._network) from error
        return {
            name: 0 if name in self.head else max(layers.values()) - layer for name, layer in layers.items()
        }

    def depth_groups(self) -> list[list[str]]:
        return depth_groups(self._network)


def apply_freezing(
    classifier: ImageClassifier, finetune: FinetuneConfig, max_epochs: int | None = None
) -> FreezeReport:
    """Let the parameters that the policy names train, and freeze all others.

    Parameters that join in a later epoch train here already, so that an optimiser takes them; `thaw` then
    says at the start of each epoch what trains in it.

    In frozen modules dropout is off, and batch-norm statistics are frozen too, unless the policy says so.

    With `finetune=lora`, the adapters are put into the network first.

    Args:
        max_epochs: of the run; what would join later is reported as frozen. None: there is no end.

    Raises:
        ModelError: the policy asks for more depth groups than the model has, timm describes none, or the
            policy speaks of batch norms or layers that the model does not have.
        ConfigError: the policy needs a package that is not installed.
    """
    network = classifier.network
    if finetune.batch_norm != "auto" and not batch_norms(network):
        raise ModelError(
            f"finetune.batch_norm={finetune.batch_norm}: {type(network).__name__} has no batch norm; "
            "use finetune.batch_norm=auto"
        )
    num_adapted = insert_adapters(classifier, finetune) if isinstance(finetune, Lora) else 0
    names = NetworkNames(network)
    chosen = finetune.trainable(names)
    finetune.rates(names)  # raises here, and not where the optimiser is made, if timm describes no layers
    classifier.batch_norm = finetune.batch_norm
    _train_these(classifier, set(chosen.names))
    joins = finetune.joins(names) if max_epochs is not None else {}
    late = {name for name, epoch in joins.items() if epoch >= (max_epochs or 0)}
    trainable = chosen.names - late
    counts = {name: parameter.numel() for name, parameter in network.named_parameters()}
    num_trainable = sum(count for name, count in counts.items() if name in trainable)
    return FreezeReport(
        policy=finetune.kind,
        trainable_parameters=num_trainable,
        frozen_parameters=sum(counts.values()) - num_trainable,
        num_groups=chosen.num_groups,
        trainable_groups=tuple(_group_name(group) for group in chosen.groups if not late.issuperset(group)),
        trains=finetune.in_words(),
        num_adapted=num_adapted,
    )


def thaw(
    classifier: ImageClassifier, finetune: FinetuneConfig, epoch: int, *, set_gradients: bool = True
) -> None:
    """Let train what the policy trains in this epoch (from 0), and freeze the rest.

    Args:
        set_gradients: whether parameters that have not joined yet get no gradients; else they keep theirs,
            which somebody must drop.
    """
    names = NetworkNames(classifier.network)
    joins = finetune.joins(names)
    trainable = {name for name in finetune.trainable(names).names if joins.get(name, 0) <= epoch}
    _train_these(classifier, trainable, set_gradients=set_gradients)


def _train_these(classifier: ImageClassifier, trainable: set[str], *, set_gradients: bool = True) -> None:
    if set_gradients:
        for name, parameter in classifier.network.named_parameters():
            parameter.requires_grad_(name in trainable)
    classifier.frozen_modules = _frozen_modules(classifier.network, trainable)
    classifier.train(classifier.training)  # puts the frozen modules in eval mode, and all others in theirs


@dataclass(frozen=True)
class ParameterPart:
    """Parameters that an optimiser treats alike, but for weight decay."""

    role: str  # "backbone", "backbone 2", …, "head"
    lr_scale: float  # their learning rate ÷ the head's
    parameters: list[nn.Parameter]  # frozen ones included
    # Entries of the optimiser's groups, which `harness.training.optimisation.schedules` reads.
    timing: dict[str, Any]


def parameter_parts(classifier: ImageClassifier, finetune: FinetuneConfig) -> list[ParameterPart]:
    """Return the network's parameters, divided by learning rate and by the epoch in which they join.

    The parts of the backbone come first, from shallow to deep, then the head.
    """
    names = NetworkNames(classifier.network)
    rates, joins = finetune.rates(names), finetune.joins(names)
    head: list[nn.Parameter] = []
    found: dict[tuple[float, int], list[nn.Parameter]] = {}
    for name, parameter in classifier.network.named_parameters():
        if name in names.head:
            head.append(parameter)
        else:
            key = (rates.get(name, finetune.backbone_rate), joins.get(name, 0))
            found.setdefault(key, []).append(parameter)
    phases = {"phases": [list(phase) for phase in finetune.phases]} if finetune.phases else {}
    parts = []
    for number, ((rate, epoch), parameters) in enumerate(found.items(), start=1):
        role = "backbone" if number == 1 else f"backbone {number}"
        joining = {"joins": epoch, "join_warmup": finetune.join_warmup} if epoch else {}
        parts.append(ParameterPart(role, rate, parameters, joining | phases))
    return [*parts, ParameterPart("head", 1.0, head, phases)]


def start_anew(classifier: ImageClassifier, fresh: nn.Module, num_groups: int) -> None:
    """Give the last depth groups of the backbone the random weights of another network.

    Source: Zhang et al. (2021), "Revisiting Few-sample BERT Fine-tuning", https://arxiv.org/abs/2006.05987

    Args:
        fresh: a network of the same architecture.
        num_groups: at most as many as the network has, which `apply_freezing` has checked.
    """
    groups = depth_groups(classifier.network)
    new = {name for group in groups[len(groups) - num_groups :] for name in group}
    state = {name: tensor for name, tensor in fresh.state_dict().items() if name in new}
    classifier.network.load_state_dict(state, strict=False)


def depth_groups(network: nn.Module) -> list[list[str]]:
    """Return the names of the backbone's parameters and buffers by depth, from shallow to deep.

    Raises:
        ModelError: timm does not describe the depth of this network.
    """
    head = head_names(network)
    tensors = {name: tensor for name, tensor in named_tensors(network) if name not in head}
    try:
        matcher = cast(TimmNetwork, network).group_matcher(coarse=True)
        ordinals = group_with_matcher(
            ((name, name) for name in [*tensors, _UNMATCHED]), matcher, reverse=True
        )
        unmatched = ordinals.pop(_UNMATCHED)
    except Exception as error:  # each network without usable patterns fails in its own way
        raise _without_groups(network) from error
    by_depth: dict[int, list[str]] = {}
    for name in tensors:
        by_depth.setdefault(ordinals[name], []).append(name)
    groups: list[list[str]] = []
    for depth in sorted(by_depth):
        # The second and third rule of this module's docstring.
        has_weight = any(tensors[name].ndim > 1 for name in by_depth[depth])
        if groups and (depth == unmatched or not has_weight):
            groups[-1] += by_depth[depth]
        else:
            groups.append(by_depth[depth])
    assert sorted(name for group in groups for name in group) == sorted(tensors), (
        "a tensor is in no group or in two"
    )
    return groups


def _without_groups(network: nn.Module) -> ModelError:
    return ModelError(
        f"timm does not divide {type(network).__name__} into depth groups, so nobody can say which are "
        "the last: use finetune=full or finetune=linear_probe, or another model"
    )


def _frozen_modules(network: nn.Module, trainable: set[str]) -> tuple[str, ...]:
    """Return the names of the topmost modules that have tensors, all of them frozen."""
    held_by: dict[str, list[str]] = {}
    for tensor_name, _ in named_tensors(network):
        parts = tensor_name.split(".")
        for depth in range(1, len(parts)):
            held_by.setdefault(".".join(parts[:depth]), []).append(tensor_name)
    frozen = {module for module, names in held_by.items() if trainable.isdisjoint(names)}
    return tuple(sorted(name for name in frozen if name.rpartition(".")[0] not in frozen))


def _group_name(group: list[str]) -> str:
    """Return the names of the group's modules, such as ``blocks.6+conv_head+bn2`` or ``layer4``."""
    modules: dict[str, list[str]] = {}
    for tensor_name in group:
        path = tensor_name.split(".")[:-1] or [tensor_name]
        common = modules.setdefault(path[0], path[:2])
        modules[path[0]] = common if common == path[:2] else path[:1]
    return "+".join(".".join(path) for path in modules.values())
