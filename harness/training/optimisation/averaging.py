"""An average of the weights over the optimiser steps (EMA) or over the last epochs (SWA).

The LightningModule (`module.py`) owns one if `average.kind` asks for it. It validates the average in place of
the weights, and writes it into checkpoints as the model, so that evaluation and export take it as any other.
The weights that train stand beside it, for a resumed run. torch's AveragedModel does the arithmetic.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from harness.config.average import Ema, Swa
from harness.config.schema import RunConfig
from harness.models import ImageClassifier
from harness.models.sync_norm import learning_norms, running_statistics
from harness.training.devices.collectives import Ranks

IN_CHECKPOINT = "harness_average"  # the key of the weights that train and of the number of updates
log = logging.getLogger(__name__)
Update = Callable[[Any, Any, Tensor | int], None]


class WeightAverage:
    """The average of a classifier's weights; nothing of it trains.

    An EMA averages the batch norms' statistics too. For an SWA they are computed anew, because those of the
    last weights do not fit the mean of several.
    """

    def __init__(self, classifier: ImageClassifier, config: Ema | Swa, max_epochs: int, ranks: Ranks) -> None:
        """Copy the classifier, on its device; the first update replaces the copied weights.

        Args:
            max_epochs: of the run.
            ranks: that train together; each keeps the average, and all of them the same.
        """
        self._config = config
        self._begins_after = config.begins_after(max_epochs)
        self._ranks = ranks
        is_ema = isinstance(config, Ema)
        self._model = AveragedModel(
            classifier,
            multi_avg_fn=ema_update(config) if isinstance(config, Ema) else None,
            use_buffers=is_ema,
        )
        self._model.requires_grad_(False)
        self._norms = learning_norms(self.classifier.train())
        self.classifier.eval()

    @property
    def classifier(self) -> ImageClassifier:
        """The averaged classifier, in evaluation mode."""
        return cast(ImageClassifier, self._model.module)

    @property
    def has_begun(self) -> bool:
        return int(self._model.n_averaged) > 0

    def after_step(
        self,
        classifier: ImageClassifier,
        epoch: int,
        *,
        is_last: bool,
        images: Callable[[], Iterable[Tensor]],
    ) -> None:
        """Take the weights of an optimiser step into the average, if it is time for that.

        Args:
            classifier: that trains.
            is_last: whether the step is the last one of the epoch.
            images: returns the batches of the epoch, as it was trained on them.
        """
        if epoch < self._begins_after:
            return
        if classifier.frozen_modules != self.classifier.frozen_modules:  # more trains in later epochs
            self.classifier.frozen_modules = classifier.frozen_modules
            self._norms = learning_norms(self.classifier.train())
            self.classifier.eval()
        if isinstance(self._config, Ema):
            self._model.update_parameters(classifier)
        elif is_last:
            self._model.update_parameters(classifier)
            recompute_statistics(self.classifier, self._norms, images())
        if is_last:
            # Each rank's norms have seen its own shards.
            self._ranks.average(running_statistics(self._norms))

    # ── checkpoints ───────────────────────────────────────────────────────────────────────────────

    def put_into(self, checkpoint: dict[str, Any], prefix: str) -> None:
        """Make the average the model of a Lightning checkpoint, beside the weights that train.

        Args:
            prefix: of the names of the classifier's tensors in the checkpoint.
        """
        if not self.has_begun:
            return
        trained = checkpoint["state_dict"]
        averaged = {prefix + name: tensor for name, tensor in self.classifier.state_dict().items()}
        checkpoint["state_dict"] = {**trained, **averaged}
        checkpoint[IN_CHECKPOINT] = {"trained": trained, "num_updates": int(self._model.n_averaged)}

    def restore(self, averaged: dict[str, Tensor], num_updates: int) -> None:
        """Go on with the average of a checkpoint, which `take_from` has returned."""
        self.classifier.load_state_dict(averaged)
        self._model.n_averaged.fill_(num_updates)


@torch.no_grad()
def recompute_statistics(
    classifier: ImageClassifier, norms: Sequence[nn.Module], images: Iterable[Tensor]
) -> None:
    """Set batch norms' statistics to the means over batches, as torch's `update_bn` does.

    Unlike there, other norms keep theirs, and dropout is off, as it is where the classifier is used.

    Args:
        classifier: in evaluation mode.
        images: batches of them, as they are trained on.
    """
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        cast(Any, norm).reset_running_stats()
        norm.momentum = None  # type: ignore[assignment]  # every batch counts equally
        norm.train()
    for batch_BCHW in images:
        classifier(batch_BCHW)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def take_from(checkpoint: dict[str, Any], prefix: str) -> tuple[dict[str, Tensor], int] | None:
    """Take the average out of a Lightning checkpoint, whose model then is that of the weights that train.

    Returns:
        The tensors of the averaged classifier by name, and the number of updates; None if there is none.
    """
    held = checkpoint.pop(IN_CHECKPOINT, None)
    if held is None:
        return None
    averaged = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    checkpoint["state_dict"] = held["trained"]
    return averaged, int(held["num_updates"])


def kept_weights(config: RunConfig, epoch: int) -> str:
    """Return which weights the kept epoch holds: `ema`, `swa`, or those that were `trained`.

    A warning says so if the run has an average, and the kept epoch is from before it.

    Args:
        epoch: from 0.
    """
    average = config.average
    if not isinstance(average, Ema | Swa):
        return "trained"
    begins_after = average.begins_after(config.trainer.max_epochs)
    if epoch >= begins_after:
        return average.kind
    log.warning(
        "the kept epoch, %d, is from before the %s, which begins with epoch %d: its weights are no average "
        "(trainer.select=last keeps the average)",
        epoch + 1,
        average.kind.upper(),
        begins_after + 1,
    )
    return "trained"


def ema_update(config: Ema) -> Update:
    """Return the update of an exponential moving average, for torch's AveragedModel.

    Source of the warm-up: TensorFlow's ExponentialMovingAverage with `num_updates`.
    """

    def update(averaged: Any, current: Any, num_averaged: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            # Counts, such as a batch norm's number of batches: torch would average and truncate them.
            for own, other in zip(averaged, current, strict=True):
                own.copy_(other)
            return
        count = int(num_averaged)
        decay = min(config.decay, (1 + count) / (10 + count)) if config.warmup else config.decay
        get_ema_multi_avg_fn(decay)(averaged, current, num_averaged)

    return update
