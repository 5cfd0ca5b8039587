"""CNNs for small images, trained from scratch.

`build_model` in `classifier.py` calls `build_scratch`. The networks have the methods of timm's networks
(`protocol.py`), which freezing needs. The `speed_cnn` is in `speed.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from harness.config.schema import ScratchModel
from harness.errors import ImageSizeError
from harness.models.speed import SpeedNet

# Smaller images would leave a pooling or an unpadded convolution without pixels.
SMALLEST_IMAGE_SIZES = {
    "lenet": 16,
    "keras_cnn": 18,
    "wide_cnn": 4,
    "vgg16": 32,
    "resnet18": 1,
    "speed_cnn": 9,
}


class ScratchNet(nn.Module):
    """A chain of stages and a linear head.

    Weights are drawn after He et al. (normal, fan-in; gain 1 for the head), biases start at zero.
    Source: https://arxiv.org/abs/1502.01852
    """

    def __init__(self, stages: Sequence[nn.Module], num_features: int, num_classes: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self.drop_rate = 0.0  # of the head's input; set by `build_scratch`, under the name that timm has
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(num_features, num_classes)
        self._init_weights()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images_BCHW))

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """Return the head's input, (B, num_features)."""
        return self.stages(images_BCHW)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits, or with `pre_logits` the features as they are."""
        if self.drop_rate:
            features = F.dropout(features, self.drop_rate, self.training)
        return features if pre_logits else self.head(features)

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's patterns of depth groups: each stage is a group, whether `coarse` or not."""
        return {"stem": r"^stages\.0\.", "blocks": r"^stages\.(\d+)"}

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(
                    module.weight, nonlinearity="linear" if module is self.head else "relu"
                )
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def build_scratch(
    config: ScratchModel,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    """Return the randomly initialised network, with timm's description of its input (`pretrained_cfg`).

    Raises:
        ImageSizeError: the images are too small for the network's poolings.
    """
    size, smallest = config.image_size, SMALLEST_IMAGE_SIZES[config.kind]
    if size < smallest:
        raise ImageSizeError(
            f"model.image_size={size} is too small for {config.kind}: use model.image_size={smallest} or more"
        )
    network: Any = _build_network(config, num_classes)
    if config.drop_rate:
        network.drop_rate = config.drop_rate
    if config.init != "default":
        _initialise(network, config.init)
    network.pretrained_cfg = {
        "architecture": config.kind,
        "input_size": (3, size, size),
        "interpolation": "bilinear",
        "mean": tuple(mean),
        "std": tuple(std),
        "num_classes": num_classes,
    }
    return network


def _build_network(config: ScratchModel, num_classes: int) -> nn.Module:
    match config.kind:
        case "lenet":
            return _lenet(config.image_size, num_classes)
        case "keras_cnn":
            return _keras_cnn(config.image_size, num_classes)
        case "wide_cnn":
            return _wide_cnn(config.image_size, num_classes)
        case "vgg16":
            return _vgg16(num_classes)
        case "resnet18":
            return _resnet18(num_classes)
        case "speed_cnn":
            return SpeedNet(num_classes)


@torch.no_grad()
def _initialise(network: nn.Module, scheme: Literal["glorot_uniform", "torch"]) -> None:
    """Draw weights and biases of convolutions and dense layers again, as another library does.

    Source of Glorot's: https://proceedings.mlr.press/v9/glorot10a.html, equation 16; the default of Keras.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if scheme == "torch":
            module.reset_parameters()
            continue
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _lenet(image_size: int, num_classes: int) -> ScratchNet:
    """Source: LeCun et al., Gradient-based learning (1998); here ReLU, max pooling, full connections."""
    side = ((image_size - 4) // 2 - 4) // 2
    stages = [
        nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(16 * side**2, 120), nn.ReLU()),
        nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
    ]
    return ScratchNet(stages, 84, num_classes)


def _keras_cnn(image_size: int, num_classes: int) -> ScratchNet:
    """Source: https://www.tensorflow.org/tutorials/images/cnn"""
    side = ((image_size - 2) // 2 - 2) // 2 - 2
    stages = [
        nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(64 * side**2, 64), nn.ReLU()),
    ]
    return ScratchNet(stages, 64, num_classes)


def _wide_cnn(image_size: int, num_classes: int) -> ScratchNet:
    """Two wide convolutions and one very wide dense layer, which holds nearly all parameters."""
    side = image_size // 2 // 2
    stages = [
        nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(128 * side**2, 1024), nn.ReLU()),
    ]
    return ScratchNet(stages, 1024, num_classes)


def _vgg16(num_classes: int) -> ScratchNet:
    """Configuration D with batch norm; its dense layers give way to pooling and one linear head.

    Convolutions keep their biases, as in torchvision's `vgg16_bn`.
    Source: https://arxiv.org/abs/1409.1556
    """
    widths = (3, 64, 128, 256, 512, 512)
    depths = (2, 2, 3, 3, 3)
    stages = [
        _vgg_stage(num_in, num_out, depth)
        for num_in, num_out, depth in zip(widths, widths[1:], depths, strict=False)
    ]
    stages[-1].extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    return ScratchNet(stages, 512, num_classes)


def _vgg_stage(num_in: int, num_out: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [
            nn.Conv2d(num_in if index == 0 else num_out, num_out, 3, padding=1),
            nn.BatchNorm2d(num_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def _resnet18(num_classes: int) -> nn.Module:
    """timm's ResNet-18 with the CIFAR stem: a 3x3 convolution of stride 1 and no pooling.

    Source: https://arxiv.org/abs/1512.03385; timm draws weights after He (fan-out) and starts each
    residual branch at zero.
    """
    block: Any = BasicBlock  # timm's annotation asks for an instance, its code for the class
    network: nn.Module = ResNet(block, (2, 2, 2, 2), num_classes=num_classes)
    conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv1.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = conv1, nn.Identity()
    return network
