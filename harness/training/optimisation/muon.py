"""The optimiser Muon: momentum with orthogonalised updates for weights, SGD for all other parameters.

`optim.py` makes it, from the groups of `muon_groups`. torch's own Muon takes matrices only, decays weights
instead of fixing their norm, and computes in bf16, which most CPUs emulate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.config.schema import FinetuneConfig, MuonOptim
from harness.models.classifier import ImageClassifier
from harness.models.freezing import ParameterPart, depth_groups, parameter_parts

# a, b and c of the iteration x ↦ ax + bx³ + cx⁵, which Newton-Schulz applies to the singular values: it
# is steep at 0, and maps values near 1 to values near 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
_NO_NORM = 1e-7  # weights with a smaller norm count as zero


class Muon(Optimizer):
    """SGD with Nesterov's momentum; groups with `orthogonalise` get orthogonalised updates.

    For this, a weight tensor is taken as a matrix with a row for each output. Before each step its norm is
    set to √(number of outputs), so that `lr` is relative to the weights. With `keep_norm` the norm is set to
    what it was at the first step instead, and the update is scaled by the ratio of that norm to √(number of
    outputs): a pretrained network still computes what it did. The state of a parameter is its momentum buffer
    and, with `keep_norm`, the norm at the first step.
    Source: K. Jordan et al., https://kellerjordan.github.io/posts/muon, with the fixed norm of
    https://github.com/KellerJordan/cifar10-airbench (airbench94_muon.py), which computes in bf16.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        """Make the optimiser.

        Args:
            groups: each with `params`, `lr` and `momentum`; the other options have the defaults below.
        """
        defaults = {"weight_decay": 0.0, "orthogonalise": False, "keep_norm": False}
        super().__init__(groups, {**defaults, "num_newton_schulz_steps": 3})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        velocity = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        step = gradient.add(velocity, alpha=group["momentum"])
        if group["orthogonalise"]:
            norm, usual = parameter.norm(), len(parameter) ** 0.5
            step = orthogonalise(step.flatten(1), group["num_newton_schulz_steps"]).view(step.shape)
            if group["keep_norm"]:
                if "norm" not in state:
                    state["norm"] = torch.where(norm > _NO_NORM, norm, usual)
                step = step * (state["norm"] / usual)
                usual = state["norm"]
            # Weights that are all zero have no norm to set; they stay zero until the step below.
            parameter.mul_(usual / norm.clamp(min=_NO_NORM))
        parameter.add_(step, alpha=-group["lr"])


def orthogonalise(matrix_MN: Tensor, num_steps: int) -> Tensor:
    """Return approximately UVᵀ, where USVᵀ is the matrix' singular value decomposition, in float32.

    By Newton-Schulz iteration. Singular values end between about 0.7 and 1.2, which trains as well as 1 does;
    those far below the largest would need more than three steps.
    """
    x = matrix_MN if matrix_MN.shape[0] <= matrix_MN.shape[1] else matrix_MN.T
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(num_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if x.shape == matrix_MN.shape else x.T


def muon_groups(
    classifier: ImageClassifier, optim: MuonOptim, finetune: FinetuneConfig
) -> list[dict[str, Any]]:
    """Return the parameter groups, which decide how each parameter is updated.

    Weights of the backbone's convolutions and linear layers get orthogonalised updates, all other parameters
    SGD with momentum. With `stem_epochs`, the stem's parameters form groups of their own.
    """
    *backbone, head = parameter_parts(classifier, finetune)
    in_stem = _stem_parameters(classifier.network, optim)
    filters = _filters(classifier.network)
    groups = []
    for part in backbone:
        groups += _backbone_groups(part, optim, in_stem, filters, classifier.is_pretrained)
    groups.append(_sgd_group("head", head.parameters, optim, optim.head_lr) | head.timing)
    return [group for group in groups if group["params"]]


def _backbone_groups(
    part: ParameterPart, optim: MuonOptim, in_stem: set[int], filters: set[int], is_pretrained: bool
) -> list[dict[str, Any]]:
    """Return groups of weights and of other parameters, those of the stem by themselves."""
    rest = [parameter for parameter in part.parameters if id(parameter) not in in_stem]
    stem = [parameter for parameter in part.parameters if id(parameter) in in_stem]
    # `build_schedule` reads this entry: the stem's learning rate reaches its end after `stem_epochs`.
    horizon = {} if optim.stem_epochs is None else {"max_epochs": optim.stem_epochs}
    scale = part.lr_scale
    weights = [
        _muon_group(f"{part.role}/weights", [p for p in rest if id(p) in filters], optim, scale),
        _muon_group("stem/weights", [p for p in stem if id(p) in filters], optim, scale) | horizon,
    ]
    for group in weights:
        group["keep_norm"] = is_pretrained
    groups = [
        *weights,
        _sgd_group(
            f"{part.role}/biases", [p for p in rest if id(p) not in filters], optim, optim.bias_lr * scale
        ),
        _sgd_group("stem/biases", [p for p in stem if id(p) not in filters], optim, optim.bias_lr * scale)
        | horizon,
    ]
    return [group | part.timing for group in groups]


def _stem_parameters(network: nn.Module, optim: MuonOptim) -> set[int]:
    if optim.stem_epochs is None:  # then no depth groups are needed, which some networks lack
        return set()
    names = set(depth_groups(network)[0])
    return {id(parameter) for name, parameter in network.named_parameters() if name in names}


def _filters(network: nn.Module) -> set[int]:
    """Return the ids of linear and convolutional weights; embeddings and scales are left out."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return {id(module.weight) for module in network.modules() if isinstance(module, kinds)}


def _muon_group(name: str, parameters: list[nn.Parameter], optim: MuonOptim, scale: float) -> dict[str, Any]:
    return {
        "name": name,
        "params": _training(parameters),
        "lr": optim.lr * scale,
        "momentum": optim.momentum,
        "orthogonalise": True,
        "num_newton_schulz_steps": optim.num_newton_schulz_steps,
    }


def _sgd_group(name: str, parameters: list[nn.Parameter], optim: MuonOptim, lr: float) -> dict[str, Any]:
    return {
        "name": name,
        "params": _training(parameters),
        "lr": lr,
        "momentum": optim.sgd_momentum,
        "weight_decay": optim.weight_decay / lr,
    }


def _training(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]
