"""The model of a run as it is before the first step: weights, what is frozen, statistics, faster modules.

`train.py` calls `prepare_model`. A resumed run does so too, and then takes the weights of its checkpoint. All
of it depends on the configuration and the training images alone, so that both find the same cached features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from harness.config.schema import RunConfig
from harness.data.splits import ImageArrays, ImageSplits
from harness.models import FreezeReport, ImageClassifier, apply_freezing, build_model
from harness.models.convolutions import speed_up_convolutions
from harness.models.freezing import start_anew
from harness.models.protocol import InitialisedFromImages
from harness.models.sync_norm import synchronise_norms
from harness.models.timm_parts import recompute_activations
from harness.training.continued import Origin, take_weights
from harness.training.devices.collectives import current_ranks
from harness.training.devices.machine import resolve_machine

NUM_IMAGES_SHOWN = 2000  # training images that a layer or the norms' statistics may be computed from
NUM_IMAGES_AT_ONCE = 128


def prepare_model(
    config: RunConfig, splits: ImageSplits, origin: Origin | None = None
) -> tuple[ImageClassifier, FreezeReport]:
    """Return the model as it is before the first step, and a report of which parameters train.

    Args:
        origin: the trained model whose weights it begins with (`init_from`).
    """
    num_classes = len(splits.class_names)
    classifier = build_model(
        config.model, num_classes, mean=splits.mean, std=splits.std, load_weights=origin is None
    )
    if origin is None:
        show_images(classifier, splits.train)
    else:
        take_weights(classifier, config.model, splits.class_names, origin)
    freezing = apply_freezing(classifier, config.finetune, config.trainer.max_epochs)
    if config.finetune.num_new_groups:
        fresh = build_model(config.model, num_classes, load_weights=False)
        start_anew(classifier, fresh.network, config.finetune.num_new_groups)
    if config.finetune.batch_norm == "recalibrate":
        recalibrate_norms(classifier, splits.train)
    if config.trainer.gradient_checkpointing:
        recompute_activations(classifier.network, config.model.kind)
    speed_up_convolutions(classifier.network)
    if config.trainer.sync_batchnorm and not current_ranks().is_alone:
        synchronise_norms(classifier.network, resolve_machine(config.trainer).device)
    return classifier, freezing


def show_images(classifier: ImageClassifier, train: ImageArrays) -> None:
    """Give evenly spaced training images to the network if it computes a layer from them."""
    if isinstance(classifier.network, InitialisedFromImages):
        images_BCHW = _images_at(train, _spaced_positions(train))
        classifier.network.init_from_images(classifier.preprocess(images_BCHW))


def recalibrate_norms(classifier: ImageClassifier, train: ImageArrays) -> None:
    """Measure the running statistics of all batch norms anew, on evenly spaced training images.

    The statistics become the means over batches of about equal sizes. A batch norm of the head's would be
    measured too.
    """
    positions = _spaced_positions(train)
    parts = np.array_split(positions, -(-len(positions) // NUM_IMAGES_AT_ONCE))  # no batch of a single image
    batches = (classifier.preprocess(_images_at(train, part)) for part in parts)
    update_bn(batches, classifier.network)
    classifier.train(classifier.training)  # the frozen modules go back to eval mode


def _spaced_positions(train: ImageArrays) -> np.ndarray:
    return np.linspace(0, len(train) - 1, min(len(train), NUM_IMAGES_SHOWN)).astype(np.int64)


def _images_at(train: ImageArrays, positions: np.ndarray) -> Tensor:
    return torch.from_numpy(train.gather(positions)).permute(0, 3, 1, 2)
