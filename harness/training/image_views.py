"""Decides which views of the training images a run sees, and so whether activations may be cached.

A view is one augmented version of an image. `cached_features.py` and `train.py` call these functions. By
default activations are cached only where this saves time and changes nothing else: without augmentation, or
with a horizontal flip alone, which has two views. With other augmentation every epoch draws new views, unless
`finetune.feature_views` sets a fixed number of views of each image. Training then differs, so the number of
views is recorded.
"""

from __future__ import annotations

from harness.config.finetune import FrozenBackbone
from harness.config.schema import AugmentConfig, RunConfig

NEW_VIEWS = "new in each epoch"


def describe_regime(config: RunConfig, cached_views: int | None) -> dict[str, bool | int | str]:
    """Return whether a run trained on cached activations, and how many views of each image it saw.

    Args:
        cached_views: the number of views in the cache; None if the run trains on images.
    """
    views = count_views(config.augment, None) if cached_views is None else cached_views
    return {"cached": cached_views is not None, "views": NEW_VIEWS if views is None else views}


def views_to_cache(config: RunConfig) -> int | None:
    """Return how many views of each image a run means to keep activations of; None: it trains on images."""
    finetune = config.finetune
    if not isinstance(finetune, FrozenBackbone) or not finetune.cache_features or needs_images(config):
        return None
    return count_views(config.augment, finetune.feature_views)


def needs_images(config: RunConfig) -> str | None:
    """Return the reason why this configuration needs images in every epoch; None if there is none."""
    finetune = config.finetune
    depth = finetune.trained_depth if isinstance(finetune, FrozenBackbone) else 0
    is_probe = isinstance(finetune, FrozenBackbone) and depth == 0
    is_mixed = config.augment.mixup_alpha or config.augment.cutmix_alpha
    nothing_frozen = f"no part of the network stays frozen to the end of finetune={finetune.kind}"
    adapts = "finetune.batch_norm=adapt changes the statistics of the frozen part with every batch"
    reasons = {
        "mixup and cutmix mix images": is_mixed,
        "the teacher (distill.teacher) answers to images": config.distill.kind != "none",
        "evaluation.tta shows other views of an image": config.evaluation.tta != "none",
        nothing_frozen: depth is None,
        adapts: finetune.batch_norm == "adapt",
        "model.drop_rate acts between the backbone and the head": is_probe
        and getattr(config.model, "drop_rate", 0.0) > 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def count_views(augment: AugmentConfig, feature_views: int | None) -> int | None:
    """Return the number of views of each image that can be kept; None if every epoch draws new ones."""
    if not is_exhaustive(augment):
        return feature_views
    num_views = 2 if is_flip_alone(augment) else 1
    return num_views if feature_views is None else min(feature_views, num_views)


def is_exhaustive(augment: AugmentConfig) -> bool:
    """Tell whether the augmentation has so few views that all of them can be kept."""
    return augment == AugmentConfig() or is_flip_alone(augment)


def is_flip_alone(augment: AugmentConfig) -> bool:
    """Tell whether the augmentation is a horizontal flip and nothing else: two views."""
    return augment == AugmentConfig(flip=augment.flip) and bool(augment.flip)
