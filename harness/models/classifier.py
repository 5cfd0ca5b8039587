"""The image classifier that all other packages handle: pixels in, logits out.

`build_model` makes one from a configuration; `harness.training` trains it and `harness.export` exports it.
Networks are built in `backbones.py` and `scratch.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.data import resolve_model_data_config
from torch import Tensor, nn

from harness.config.schema import ModelConfig, ScratchModel
from harness.models.backbones import build_backbone
from harness.models.preprocess import Preprocess
from harness.models.protocol import heads
from harness.models.scratch import build_scratch
from harness.models.sync_norm import batch_norms

_HALF, _ZERO, _ONE = (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class ImageClassifier(nn.Module):
    """Preprocessing, then a network that follows timm's protocol (`protocol.py`).

    `frozen_modules` names the modules of `network` that `apply_freezing` froze. They stay in eval mode even
    while the classifier is in training mode. So their batch norms keep their statistics, dropout and
    stochastic depth are off, and a frozen part computes the same in every epoch. With `batch_norm` "frozen",
    all batch norms stay in eval mode; with "adapt", none does.
    """

    def __init__(self, network: nn.Module, preprocess: Preprocess, *, is_pretrained: bool = False) -> None:
        super().__init__()
        self.is_pretrained = is_pretrained
        self.preprocess = preprocess
        self.network = network
        self.frozen_modules: tuple[str, ...] = ()
        self.batch_norm = "auto"  # see harness.config.finetune.BatchNormPolicy
        self._entry: str | None = None
        self._replaced: dict[str, nn.Module] = {}  # by name, the modules that stand-ins have replaced

    @property
    def image_size(self) -> int:
        """The side, in pixels, of the square images that the network receives."""
        return self.preprocess.image_size

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, num_classes).

        Args:
            images_BCHW: uint8, or float in [0, 1]; any height and width. After `enter_at`: activations,
                float.
        """
        if self._entry is None:
            return self.network(self.preprocess(images_BCHW))
        entry = self.network.get_submodule(self._entry)
        # A linear probe needs nothing of the network but its head.
        is_head = entry in heads(self.network)
        return (entry if is_head else self.network)(images_BCHW.float())

    def enter_at(self, entry: str, passed: Sequence[str]) -> None:
        """Let `forward` take the activations that enter the module `entry`, in place of images.

        The network's own forward pass still runs: the modules before `entry` are replaced by stand-ins that
        return their input. The state dict and the parameters stay the same.

        Args:
            entry: the name of the first module that runs.
            passed: the names of the modules that have finished before it, without their submodules.
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
        """Let `forward` take images again: every module is put back in its place."""
        for name, module in self._replaced.items():
            # Only this flag is not shared: the stand-in may have been put in another mode meanwhile.
            module.training = self.network.get_submodule(name).training
            self.network.set_submodule(name, module, strict=True)
        self._entry, self._replaced = None, {}

    def train(self, mode: bool = True) -> ImageClassifier:
        """Set the mode of all modules but the frozen ones, which stay in eval mode (see `batch_norm`)."""
        super().train(mode)
        set_frozen_eval(self)
        return self


class _Passed(nn.Module):
    """A mixin for the class of a module that need not run any more: `forward` returns its input."""

    def forward(self, activations: Tensor) -> Tensor:
        return activations


def _stand_in(module: nn.Module) -> nn.Module:
    """Return a module that hands on its input, and is `module` in every other respect.

    Both share tensors, children and hooks, so that the state dict stays as it is. The stand-in also has the
    attributes and methods of `module`, which the forward pass of a network may use.
    """
    kind: type[nn.Module] = type(f"Passed{type(module).__name__}", (_Passed, type(module)), {})
    stand_in = kind.__new__(kind)
    # Updated past nn.Module.__setattr__, so that both modules share the dicts of tensors and children.
    vars(stand_in).update({name: value for name, value in vars(module).items() if name != "forward"})
    return stand_in


def set_frozen_eval(classifier: ImageClassifier) -> None:
    """Put the frozen modules in eval mode. `ImageClassifier.train` calls this; others need not."""
    for name in classifier.frozen_modules:
        classifier.network.get_submodule(name).eval()
    if classifier.batch_norm in ("frozen", "adapt"):
        for norm in batch_norms(classifier.network):
            norm.train(classifier.training and classifier.batch_norm == "adapt")


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
        mean: of the training images' pixels in [0, 1], per channel. From-scratch models normalise with it
            (default 0.5) unless `normalisation` says otherwise; timm's models have means of their own.
        std: likewise.
        load_weights: False builds the architecture only: no file and no hub is needed, and the meta device
            works.

    Raises:
        ModelError: the name is unknown, the weights cannot be loaded, or the network rejects the image size.
    """
    if isinstance(config, ScratchModel):
        network = build_scratch(config, num_classes, *_normalisation(config, mean, std))
    else:
        network = build_backbone(config, num_classes, load_weights=load_weights)
    described = resolve_model_data_config(network)
    image_size = config.image_size or described["input_size"][-1]
    preprocess = Preprocess(image_size, described["mean"], described["std"], described["interpolation"])
    return ImageClassifier(network, preprocess, is_pretrained=config.is_pretrained)


def _normalisation(
    config: ScratchModel, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean that is subtracted from pixels in [0, 1], and the deviation that they are divided by.

    Args:
        mean: of the training images, see `build_model`.
        std: likewise.
    """
    match config.normalisation:
        case "data":
            return mean or _HALF, std or _HALF
        case "half":
            return _HALF, _HALF
        case "none":
            return _ZERO, _ONE
