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
        self._replaced: dict[str, nn.Module] = {}  # by name, the modules that stand-ins have replaced

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
        stand_ins = {module: _stand_in(module) for module in map(self.network.get_submodule, passed)}
        # A module may be registered under several names: all of them get the stand-in.
        for name, module in list(self.network.named_modules(remove_duplicate=False)):
            if module in stand_ins:
                self._replaced[name] = module
                self.network.set_submodule(name, stand_ins[module], strict=True)

    def enter_at_pixels(self) -> None:
        """Take images again, with every module back in its place."""
        for name, module in self._replaced.items():
            # Only this flag is not shared: the stand-in may have been put in another mode meanwhile.
            module.training = self.network.get_submodule(name).training
            self.network.set_submodule(name, module, strict=True)
        self._entry, self._replaced = None, {}

    def train(self, mode: bool = True) -> ImageClassifier:
        """Set the mode of all but the frozen modules."""
        super().train(mode)
        set_frozen_eval(self)
        return self


class _Passed(nn.Module):
    """Mixed into the class of a module whose work is done already: it returns what it is given."""

    def forward(self, activations: Tensor) -> Tensor:
        return activations


def _stand_in(module: nn.Module) -> nn.Module:
    """Return a module that hands on its input, and is `module` in every other respect.

    It shares tensors, children and hooks with `module`, so that the state dict stays as it is, and it has its
    attributes and methods, which the forward pass of a network may use.
    """
    kind: type[nn.Module] = type(f"Passed{type(module).__name__}", (_Passed, type(module)), {})
    stand_in = kind.__new__(kind)
    # Not attribute by attribute: nn.Module would register copies of what is to be shared.
    vars(stand_in).update({name: value for name, value in vars(module).items() if name != "forward"})
    return stand_in


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
