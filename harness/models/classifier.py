"""The classifier that everything else handles: pixels in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

from timm.data import resolve_model_data_config
from torch import Tensor, nn

from harness.config.schema import ModelConfig, ScratchModel
from harness.models.backbones import build_backbone
from harness.models.preprocess import Preprocess
from harness.models.protocol import heads
from harness.models.scratch import build_scratch

_DEFAULT_MEAN = _DEFAULT_STD = (0.5, 0.5, 0.5)


class ImageClassifier(nn.Module):
    """A network in timm's protocol with its preprocessing in front.

    `frozen_modules` names the modules of `network` that `apply_freezing` froze. They stay in eval mode
    whatever mode the classifier is put in, so that batch norm keeps its statistics and neither dropout
    nor stochastic depth disturbs what no longer learns.
    """

    def __init__(self, network: nn.Module, preprocess: Preprocess, *, is_pretrained: bool = False) -> None:
        super().__init__()
        self.is_pretrained = is_pretrained
        self.preprocess = preprocess
        self.network = network
        self.frozen_modules: tuple[str, ...] = ()
        self._entry: str | None = None
        self._handing_on: dict[nn.Module, object] = {}  # and what it had as `forward` of its own, if anything

    @property
    def image_size(self) -> int:
        """Pixels of the side of what the network sees."""
        return self.preprocess.image_size

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, num_classes).

        Args:
            images_BCHW: uint8, or float in [0, 1]; any height and width. After `enter_at`: activations.
        """
        if self._entry is None:
            return self.network(self.preprocess(images_BCHW))
        entry = self.network.get_submodule(self._entry)
        is_head = entry in heads(self.network)
        return (entry if is_head else self.network)(images_BCHW.float())

    def enter_at(self, entry: str, passed: Sequence[str]) -> None:
        """Take the activations that enter the module `entry` in place of images, of any float type.

        The weights stay where they are: the modules that have run by then hand on what they are given.

        Args:
            passed: the topmost of those modules.
        """
        self.enter_at_pixels()
        self._entry = entry
        for module in map(self.network.get_submodule, passed):
            self._handing_on[module] = vars(module).get("forward")
            module.forward = _hand_on

    def enter_at_pixels(self) -> None:
        """Take images again, with every module as it was found."""
        for module, own_forward in self._handing_on.items():
            del module.forward
            if own_forward is not None:
                module.forward = own_forward  # type: ignore[assignment]
        self._entry, self._handing_on = None, {}

    def train(self, mode: bool = True) -> ImageClassifier:
        """Set the mode of all but the frozen modules."""
        super().train(mode)
        set_frozen_eval(self)
        return self


def _hand_on(activations: Tensor) -> Tensor:
    return activations


def set_frozen_eval(classifier: ImageClassifier) -> None:
    """Put the frozen modules in eval mode; `ImageClassifier.train` does it by itself."""
    for name in classifier.frozen_modules:
        classifier.network.get_submodule(name).eval()


def build_model(
    config: ModelConfig,
    num_classes: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    load_weights: bool = True,
) -> ImageClassifier:
    """Return the configured classifier with a new head, all parameters trainable.

    Args:
        mean: per channel, of pixels in [0, 1]; what a from-scratch model normalises with (default 0.5).
            timm's models use their own.
        std: likewise.
        load_weights: False builds the architecture only, without file or hub, also on the meta device.

    Raises:
        ModelError: the name, the weights or the image size cannot be had.
    """
    if isinstance(config, ScratchModel):
        mean = _DEFAULT_MEAN if mean is None else mean
        std = _DEFAULT_STD if std is None else std
        network = build_scratch(config, num_classes, mean, std)
    else:
        network = build_backbone(config, num_classes, load_weights=load_weights)
    described = resolve_model_data_config(network)
    image_size = config.image_size or described["input_size"][-1]
    preprocess = Preprocess(image_size, described["mean"], described["std"], described["interpolation"])
    return ImageClassifier(network, preprocess, is_pretrained=config.is_pretrained)
