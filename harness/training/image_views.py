"""Which views of its training images a run sees, and so when a frozen backbone's activations may be cached.

They are cached unasked only where that changes nothing but time: without augmentation, or with a horizontal
flip alone, whose two views are all there are; each image is then shown as the uncached run would show it.
With other augmentation a run draws anew in every epoch, unless `finetune.feature_views` asks for so many
fixed views of each image: that is another way to train, and is recorded as one.
"""

from __future__ import annotations

from harness.config.finetune import FrozenBackbone
from harness.config.schema import AugmentConfig, RunConfig

NEW_VIEWS = "new in each epoch"


def describe_regime(config: RunConfig, cached_views: int | None) -> dict[str, bool | int | str]:
    """Return how a run really sees its training images, for its record.

    Args:
        cached_views: of each image, in a cache that the run trains from; None where it trains on images.
    """
    views = count_views(config.augment, None) if cached_views is None else cached_views
    return {"cached": cached_views is not None, "views": NEW_VIEWS if views is None else views}


def needs_images(config: RunConfig) -> str | None:
    """Return what in the configuration has to see images in every epoch, None if nothing has."""
    if config.augment.mixup_alpha or config.augment.cutmix_alpha:
        return "mixup and cutmix mix images"
    if config.evaluation.tta != "none":
        return "evaluation.tta shows other views of an image"
    is_head_alone = isinstance(config.finetune, FrozenBackbone) and config.finetune.trained_depth == 0
    if is_head_alone and getattr(config.model, "drop_rate", 0.0) > 0:
        return "model.drop_rate acts between the backbone and the head"
    return None


def count_views(augment: AugmentConfig, feature_views: int | None) -> int | None:
    """Return how many views of an image there are, or are asked for; None: new ones in every epoch."""
    if not is_exhaustive(augment):
        return feature_views
    num_views = 2 if is_flip_alone(augment) else 1
    return num_views if feature_views is None else min(feature_views, num_views)


def is_exhaustive(augment: AugmentConfig) -> bool:
    """Tell whether all views of an image can be kept."""
    return augment == AugmentConfig() or is_flip_alone(augment)


def is_flip_alone(augment: AugmentConfig) -> bool:
    """Tell whether an image has two views only."""
    return augment == AugmentConfig(flip=augment.flip) and bool(augment.flip)
