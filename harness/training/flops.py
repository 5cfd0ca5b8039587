"""Counts the floating-point operations of a run's training: its compute, whatever machine it runs on.

`costs.py` records them with the run's other costs; `harness.search.suggest.compute` gives the trials of a
sweep lengths of equal compute. torch's `FlopCounterMode` counts them on the meta device, where nothing is
computed: one forward and backward pass of the network as it trains, its frozen part forward only. As usual,
convolutions, matrix products and attention count (two operations for each multiplication with its addition);
norms, activations, augmentation and the optimiser do not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from harness.config.average import Swa
from harness.config.distill import SoftTargets
from harness.config.finetune import FrozenBackbone
from harness.config.schema import FinetuneConfig, ModelConfig, RunConfig, TrackingConfig
from harness.errors import HarnessError, ModelError, first_line
from harness.models import ImageClassifier, apply_freezing, build_model
from harness.models.freezing import NetworkNames, thaw
from harness.models.sync_norm import learning_norms
from harness.models.timm_parts import recompute_activations
from harness.models.trunk import trunk_activations, trunk_end
from harness.training.teacher import find_teacher, load_teacher

PFLOP = 1e15  # floating-point operations
BATCH = 2  # images in the counted step; a batch norm can take no variance from a single one


@dataclass(frozen=True)
class ImageFlops:
    """The operations of training for one image.

    Args:
        step: Of what runs whenever the image is trained on.
        once: Of the frozen part whose activations are cached: run once for each kept view of an image. 0 if
            nothing is cached; the frozen part is then in `step`.
        views: Kept views of each image, if activations are cached.
    """

    step: float
    once: float = 0.0
    views: int = 1

    def total(self, num_images: float, num_train: int) -> float:
        """Return the operations of a training.

        Args:
            num_images: Images that it trains on, each as often as it comes.
            num_train: Images in the training split. A cached view counts the first time that it can come.
        """
        return self.step * num_images + self.once * min(num_images, self.views * num_train)

    def affordable(self, flops: float, num_train: int) -> float:
        """Return on how many images a training of so many operations trains: the inverse of `total`."""
        of_first_views = (self.step + self.once) * self.views * num_train
        if flops <= of_first_views:
            return flops / (self.step + self.once)
        return self.views * num_train + (flops - of_first_views) / self.step


def count_image_flops(
    config: RunConfig, num_classes: int, cached_views: int | None, num_epochs: int | None = None
) -> ImageFlops:
    """Return the operations of a run's training for one image. Counting takes about a second, once a process.

    Where more of the network trains in later epochs (`finetune=gradual`), a step is the mean of the epochs'.

    Args:
        cached_views: The views of each image on whose cached activations the run trains; None: it trains on
            images. For a run that has not begun, `views_to_cache`.
        num_epochs: That it trains; None for all that it may.

    Raises:
        ModelError: The network cannot be built, or runs neither on the meta device nor on the CPU.
    """
    epochs, recomputes = num_epochs or config.trainer.max_epochs, config.trainer.gradient_checkpointing
    if config.finetune.thaws:
        counted, forward = _count_stages(config, num_classes, cached_views, epochs)
    else:
        counted, forward = _count(config.model, config.finetune, num_classes, cached_views, recomputes)
    step = config.optim.passes_per_batch * (counted.step + _teacher_flops(config))
    # SWA runs the averaged network forward once more over each epoch that it averages.
    return replace(counted, step=step + _averaged_share(config, epochs) * forward)


def count_heaviest_step(config: RunConfig, num_classes: int) -> float:
    """Return the operations of a step for one image, on images, when all trains that ever does.

    Raises:
        ModelError: As for `count_image_flops`.
    """
    recomputes = config.trainer.gradient_checkpointing
    step = _count(config.model, config.finetune, num_classes, None, recomputes)[0].step
    return config.optim.passes_per_batch * (step + _teacher_flops(config))


def _count_stages(
    config: RunConfig, num_classes: int, cached_views: int | None, epochs: int
) -> tuple[ImageFlops, float]:
    """Return the same as `_count`, for a step that has the mean of the epochs, which are of equal length."""
    model, finetune = config.model, config.finetune
    with torch.device("meta"):
        names = NetworkNames(build_model(model, num_classes, load_weights=False).network)
    starts = sorted({0, *(epoch for epoch in finetune.joins(names).values() if epoch < epochs)})
    recomputes = config.trainer.gradient_checkpointing
    stages = [_count(model, finetune, num_classes, cached_views, recomputes, start) for start in starts]
    lengths = [end - start for start, end in pairwise([*starts, epochs])]
    step = sum(stage.step * length for (stage, _), length in zip(stages, lengths, strict=True)) / epochs
    return replace(stages[0][0], step=step), stages[-1][1]


def _averaged_share(config: RunConfig, num_epochs: int) -> float:
    """Return the share of the first epochs of a run after which SWA computes the norms' statistics anew."""
    if not isinstance(config.average, Swa):
        return 0.0
    return max(0, num_epochs - config.average.begins_after(config.trainer.max_epochs)) / num_epochs


def _teacher_flops(config: RunConfig) -> float:
    """Return the operations of the teacher's answer to one image; 0 without a teacher."""
    if not isinstance(config.distill, SoftTargets):
        return 0.0
    try:
        return _count_teacher(config.distill.teacher, config.tracking.dir)
    except HarnessError as error:
        raise ModelError(f"the operations of the teacher cannot be counted: {error}") from error


@cache
def _count_teacher(reference: str, runs: str) -> float:
    config = RunConfig(distill=SoftTargets(teacher=reference), tracking=TrackingConfig(dir=runs))
    teacher = load_teacher(find_teacher(config), config, ())
    assert teacher is not None
    with torch.no_grad(), _counting() as counter:
        teacher.classifier(_images(teacher.classifier))
    return counter.get_total_flops() / BATCH


def count_forward_flops(config: RunConfig, num_classes: int) -> float:
    """Return the operations of classifying one image, with the whole network.

    Raises:
        ModelError: As for `count_image_flops`.
    """
    with torch.device("meta"), torch.no_grad():
        classifier = build_model(config.model, num_classes, load_weights=False).eval()
        with _counting() as counter:
            classifier(_images(classifier))
    return counter.get_total_flops() / BATCH


@cache
def _count(
    model: ModelConfig,
    finetune: FinetuneConfig,
    num_classes: int,
    views: int | None,
    recomputes: bool,
    epoch: int | None = None,
) -> tuple[ImageFlops, float]:
    """Return the operations of training, and those of a forward pass that sets batch norms' statistics.

    The latter are 0 if no batch norm trains.

    Args:
        epoch: Whose step is counted, where more trains in later ones; None: all trains that ever does.
    """
    problem: Exception | None = None
    for device in ("meta", "cpu"):  # some networks look at values, which the meta device does not have
        try:
            with torch.device(device):
                return _count_on(model, finetune, num_classes, views, recomputes, epoch)
        except ModelError:
            raise
        except Exception as error:  # each network fails in its own way
            problem = error
    assert problem is not None
    raise ModelError(
        f"the operations of a training step of {model.kind} cannot be counted: {first_line(problem)}"
    ) from problem


def _count_on(
    model: ModelConfig,
    finetune: FinetuneConfig,
    num_classes: int,
    views: int | None,
    recomputes: bool,
    epoch: int | None,
) -> tuple[ImageFlops, float]:
    """Count on torch's default device, without the faster convolutions: their sums would not be counted."""
    classifier = build_model(model, num_classes, load_weights=False)
    apply_freezing(classifier, finetune)
    if epoch is not None:
        thaw(classifier, finetune, epoch)
    if recomputes:
        recompute_activations(classifier.network, model.kind)
    classifier.train()
    images_BCHW = _images(classifier)
    if views is not None and isinstance(finetune, FrozenBackbone):
        depth = finetune.trained_depth
        assert depth is not None  # or it would have no views
        end = trunk_end(classifier, images_BCHW, depth)
        if end is not None:
            with _counting() as counter:
                activations = trunk_activations(classifier, images_BCHW, [end])[depth]
            once = counter.get_total_flops() / BATCH
            classifier.enter_at(end.entry, end.passed)
            step, forward = _count_step(classifier, activations), _count_forward(classifier, activations)
            return ImageFlops(step, once, views), forward
    return ImageFlops(_count_step(classifier, images_BCHW)), _count_forward(classifier, images_BCHW)


def _images(classifier: ImageClassifier) -> Tensor:
    return torch.zeros(BATCH, 3, classifier.image_size, classifier.image_size, dtype=torch.uint8)


@contextlib.contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    # Attention as two matrix products: some fused kernels are not counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=CORRECTED) as counter:
        yield counter


def _count_step(classifier: ImageClassifier, inputs: Tensor) -> float:
    """Return the operations of the forward and the backward pass for one image."""
    labels_B = torch.zeros(len(inputs), dtype=torch.int64)
    with _counting() as counter:
        F.cross_entropy(classifier(inputs), labels_B).backward()
    return counter.get_total_flops() / len(inputs)


def _count_forward(classifier: ImageClassifier, inputs: Tensor) -> float:
    """Return the operations of a forward pass for one image; 0 if no batch norm learns from it."""
    if not learning_norms(classifier):
        return 0.0
    with torch.no_grad(), _counting() as counter:
        classifier(inputs)
    return counter.get_total_flops() / len(inputs)


def _conv_backward(
    grad_out_shape: Sequence[int],
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """Return the operations of a convolution's backward pass.

    The gradients of its input and of its weight each take the multiplications of the forward pass. torch's
    own formula counts the weight's gradient of a convolution in groups as if it had one group: a depthwise
    one of 1,152 channels 1,152-fold (torch 2.14).
    """
    forward = conv_flop_count(list(x_shape), list(w_shape), list(grad_out_shape), transposed=transposed)
    return forward * sum(map(bool, output_mask[:2]))


CORRECTED = {torch.ops.aten.convolution_backward: _conv_backward}
