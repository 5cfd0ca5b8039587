"""The section `average`: which average of the weights is validated, kept and exported, if any.

`schema.py` puts it into a run; `harness.training.optimisation.averaging` applies it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from harness.config.base import Section


class NoAverage(Section):
    """The weights themselves are validated, kept and exported."""

    kind: Literal["none"] = "none"


class Ema(Section):
    """An exponential moving average of the weights, updated after every optimiser step."""

    kind: Literal["ema"] = "ema"
    decay: float = 0.999  # the share of the average that a step leaves
    # The decay rises with the number of updates n, as min(decay, (1 + n) / (10 + n)): a young average soon
    # forgets the first weights.
    warmup: bool = True
    start_epoch: Annotated[int, Field(ge=0)] = 0  # epochs that are trained before the average begins

    @field_validator("decay")
    @classmethod
    def _moves(cls, decay: float) -> float:
        if not 0.0 < decay < 1.0:
            what = "would keep the first weights for ever" if decay == 1.0 else "is no average"
            raise ValueError(f"{decay:g} {what}: use a decay above 0 and below 1, such as 0.999")
        return decay

    def begins_after(self, max_epochs: int) -> int:
        """Return how many epochs are trained before the average begins."""
        return self.start_epoch


class Swa(Section):
    """Stochastic weight averaging: the mean of the weights at the ends of the last epochs.

    The statistics of batch norms are computed anew for it, in a pass over the epoch's images.
    Source: https://arxiv.org/abs/1803.05407
    """

    kind: Literal["swa"] = "swa"
    # Epochs that are trained before the first that is averaged; None: three quarters of trainer.max_epochs.
    start_epoch: Annotated[int, Field(ge=0)] | None = None

    def begins_after(self, max_epochs: int) -> int:
        """Return how many epochs are trained before the average begins."""
        return 3 * max_epochs // 4 if self.start_epoch is None else self.start_epoch


AverageConfig = Annotated[NoAverage | Ema | Swa, Field(discriminator="kind")]
