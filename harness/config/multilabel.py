"""What multi-label images (`data=multilabel`) change in a configuration: the metric, and what they refuse.

`schema.py` calls both functions when a run is validated, and `compose.py` asks for a sweep's default metric.
A new setting that makes sense for one class per image alone is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.config.monitor import BY_ACCURACY, METRICS_OF_CLASSES, METRICS_OF_LABELS, Metric

if TYPE_CHECKING:
    from harness.config.schema import RunConfig

KIND = "multilabel"  # of the section `data`


def default_metric(data_kind: object) -> Metric:
    """Return the metric that decides where none is named."""
    return "val/mAP" if data_kind == KIND else BY_ACCURACY.metric


def with_default_monitor(values: Any) -> Any:
    """Return a run's values with the metric that suits its images, where `trainer.monitor` names none."""
    if not isinstance(values, Mapping):
        return values
    data, trainer = values.get("data"), values.get("trainer", {})
    kind = data.get("kind") if isinstance(data, Mapping) else getattr(data, "kind", None)
    if kind != KIND or not isinstance(trainer, Mapping):
        return values
    monitor = trainer.get("monitor") or {}
    if not isinstance(monitor, Mapping) or monitor.get("metric") is not None:
        return values
    return {**values, "trainer": {**trainer, "monitor": {**monitor, "metric": default_metric(kind)}}}


def check_labels_suit(config: RunConfig) -> None:
    """Check that loss, metric and data settings are defined for the images' labels.

    Raises:
        ValueError: one is not; the message says what to set.
    """
    check_metric(config.trainer.monitor.metric, config.data.kind, "trainer.monitor.metric")
    if config.data.kind != KIND:
        return
    if config.loss.kind not in ("binary", "focal"):
        raise ValueError(
            f"loss={config.loss.kind} is of a softmax, which gives an image one class, and data=multilabel "
            "can give it several: use loss=binary or loss=focal"
        )
    if config.distill.kind != "none":
        raise ValueError(
            "distill=soft_targets compares softmaxes, which give an image one class, and data=multilabel can "
            "give it several: use distill=none"
        )
    if config.loss.adjustment:
        raise ValueError(
            f"loss.logit_adjustment={config.loss.adjustment:g} is of a softmax, which gives an image one "
            "class, and data=multilabel can give it several: leave it out"
        )
    if config.data.max_train_samples is not None:
        raise ValueError(
            "data.max_train_samples draws a subset of each class, and images of data=multilabel have no "
            "single class: leave it out, or shorten the epochs by data.samples_per_epoch"
        )
    for name, default in (
        ("images_per_class", None),
        ("imbalance_factor", 1.0),
        ("label_noise", 0.0),
        ("sampling", "natural"),
        ("folds", None),
    ):
        if (value := getattr(config.data, name)) != default:
            raise ValueError(
                f"data.{name}={value} is of images with one class each, and those of data=multilabel have no "
                "single class: leave it out"
            )


def check_metric(metric: str, data_kind: str, key: str) -> None:
    """Check that a metric is measured of such images.

    Args:
        key: that set it, for the message.

    Raises:
        ValueError: it is not.
    """
    known = METRICS_OF_LABELS if data_kind == KIND else METRICS_OF_CLASSES
    if metric not in known:
        raise ValueError(
            f"{key}={metric} is not measured with data={data_kind}: choose one of {', '.join(known)}"
        )
