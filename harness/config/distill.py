"""The section `distill`: which teacher a network learns from besides its labels, if any.

`schema.py` puts it into a run; `harness.training.teacher` finds the teacher and computes the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.config.base import Section


class NoTeacher(Section):
    """The labels alone are learnt from."""

    kind: Literal["none"] = "none"

    @model_validator(mode="before")
    @classmethod
    def _has_no_teacher(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("teacher") is not None:
            raise ValueError("a teacher takes effect with distill=soft_targets: add that, or leave it out")
        return values


class SoftTargets(Section):
    """Knowledge distillation: the network also learns what a trained one answers to the same images.

    The loss is (1 - weight) × the run's own + weight × T² × KL(teacher ‖ network), both at temperature T.
    Source: Hinton et al. (2015), https://arxiv.org/abs/1503.02531; the defaults are those that
    https://arxiv.org/abs/1910.10699 compares methods with.
    """

    kind: Literal["soft_targets"] = "soft_targets"
    # A run (id, name, or a sweep's name, which stands for its best), the folder of an exported bundle, the
    # name of a packaged network (efficientnet_lite0), or timm:NAME.
    teacher: Annotated[str, Field(min_length=1)]
    temperature: Annotated[float, Field(gt=0.0)] = 4.0  # that both networks' logits are divided by
    weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9  # of the teacher's part of the loss


DistillConfig = Annotated[NoTeacher | SoftTargets, Field(discriminator="kind")]
