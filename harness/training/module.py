"""The LightningModule of a classifier: loss, optimiser, and the metrics of an epoch.

`train.py` makes it, `fit.py` hands it to Lightning's Trainer, and `callbacks.py` reads its metrics after each
epoch. Training metrics are summed on the device and read once an epoch, so that no step waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from harness.analysis.metrics import split_metrics
from harness.analysis.multilabel_metrics import multilabel_metrics
from harness.config.average import Ema, Swa
from harness.config.schema import RunConfig
from harness.errors import BatchSizeError
from harness.models import ImageClassifier
from harness.models.freezing import thaw
from harness.models.sync_norm import (
    PausedNorm,
    learning_norms,
    pause_tracking,
    resume_tracking,
    running_statistics,
)
from harness.models.timm_parts import clip_adaptively
from harness.training.checkpoints.checkpoint import PREFIX, SECTION, ModelFacts
from harness.training.devices.collectives import Ranks, current_ranks
from harness.training.optimisation.averaging import WeightAverage, take_from
from harness.training.optimisation.losses import TrainingLoss, penalty
from harness.training.optimisation.optim import build_optimizer, build_schedule, parameters_at_rest
from harness.training.optimisation.sam import uphill
from harness.training.optimisation.schedules import PlateauLR
from harness.training.teacher import Teacher
from harness.training.tta import predict_logits


class RunningMeans:
    """Mean loss and accuracy of an epoch's training batches, summed on the device.

    Of multi-label images, the accuracy is the share whose labels are all right (`exact_match`), each answered
    yes above a probability of 0.5.

    `update` does not wait for the device; `compute` does. Validation metrics are not computed here but by
    :func:`split_metrics`, which `evaluate.py` also calls. torchmetrics computes the same means, but its
    `update` took about five times as long (72-105 µs against 16 µs a step on a CPU).
    """

    def __init__(self, *, is_multilabel: bool = False) -> None:
        self.is_multilabel = is_multilabel
        self.reset()

    def reset(self) -> None:
        self.loss_sum: Tensor | float = 0.0
        self.num_correct: Tensor | float = 0.0
        self.num_images = 0

    def update(self, loss: Tensor, logits_BK: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            loss: mean over the batch, a scalar.
            labels: int64 (B,), or probabilities (B, K) of mixed images; the most probable class is the label.
                Of multi-label images (B, K): what is above 0.5 is a label.
        """
        batch = labels.shape[0]
        self.loss_sum = self.loss_sum + loss.detach().float() * batch
        if self.is_multilabel:
            is_right_B = ((logits_BK > 0) == (labels > 0.5)).all(1)
        else:
            is_right_B = logits_BK.argmax(1) == (labels if labels.ndim == 1 else labels.argmax(1))
        self.num_correct = self.num_correct + is_right_B.sum()
        self.num_images += batch

    def reduce(self, ranks: Ranks) -> None:
        """Replace the sums of this rank by those over all ranks."""
        if not ranks.is_alone:
            own = [float(self.loss_sum), float(self.num_correct), float(self.num_images)]
            self.loss_sum, self.num_correct, num_images = ranks.sum(own)
            self.num_images = int(num_images)

    def compute(self) -> tuple[float, float]:
        """Return (mean loss, accuracy). Waits for the device."""
        count = max(self.num_images, 1)
        return float(self.loss_sum) / count, float(self.num_correct) / count


class ClassifierModule(pl.LightningModule):
    """An :class:`ImageClassifier` with its loss and optimiser. It logs nothing: `EpochRecorder` does."""

    def __init__(
        self,
        classifier: ImageClassifier,
        config: RunConfig,
        facts: ModelFacts,
        num_batches: int,
        class_weights_K: Tensor | None = None,
        teacher: Teacher | None = None,
        counts_K: np.ndarray | None = None,
    ):
        """
        Args:
            facts: about model and data; written into every checkpoint beside the weights.
            num_batches: training batches in an epoch; schedules count in optimiser steps.
            class_weights_K: of the loss, see `harness.training.optimisation.losses.class_weights`.
            teacher: whose answers are learnt too, see `harness.training.teacher`.
            counts_K: the training images of each class; needed by `loss.logit_adjustment`.
        """
        super().__init__()
        self.classifier = classifier
        self.config = config
        self.facts = facts
        self.num_batches = num_batches
        self.train_means = RunningMeans(is_multilabel=config.is_multilabel)
        self.val_logits = torch.empty(0)  # on rank 0, of the latest epoch: float32 (N, K), on the CPU
        self.val_metrics: dict[str, float] = {}  # latest epoch's, the same on all ranks
        self._val_batches: list[tuple[Tensor, Tensor]] = []  # logits and labels
        # With test-time augmentation, which images are right without it; of multi-label images the logits.
        self._val_without: list[Tensor] = []
        self.ranks = current_ranks()
        self._norms = learning_norms(classifier)
        self._loss = TrainingLoss(
            config.loss,
            config.optim.label_smoothing,
            class_weights_K,
            counts_K=counts_K,
            is_multilabel=config.is_multilabel,
        )
        self._teacher = teacher  # no nn.Module: nothing of it trains, nor is in a checkpoint
        self._num_accumulated = 0  # images whose gradients the next optimiser step takes, over all ranks
        self._step_batches: list[tuple[Any, int]] = []  # of this optimiser step so far, if SAM needs them
        self._paused: list[PausedNorm] = []  # the batch norms that must not track statistics
        self._at_rest: list[nn.Parameter] = []  # see `parameters_at_rest`
        # In a tuple, or Lightning would take it for a part of what trains.
        self._average: tuple[WeightAverage, ...] = ()
        self._resumed_average: tuple[dict[str, Tensor], int] | None = None

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.classifier(images_BCHW)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self._training_logits(images)
        loss = self._loss(logits, labels)
        if self._teacher is not None:
            loss = self._teacher.loss(loss, logits, images)
        # Training metrics are without the penalties, to be compared with those of validation.
        penalised = penalty(self.config.loss, self.classifier.parameters())
        total = loss if penalised is None else loss + penalised
        if self.ranks.is_alone:
            self.train_means.update(loss, logits, labels)
            return self._share_of_step(total, len(images))
        shard = self.trainer.train_dataloader.shard(batch_idx)  # type: ignore[union-attr]
        # A batch too small to divide goes to every rank as a whole: only one rank counts its images.
        if shard.counts:
            self.train_means.update(loss, logits, labels)
        # DDP gives the ranks' gradients equal weight, although their shards can differ in size.
        return self._share_of_step(total * shard.weight, shard.total)

    def _share_of_step(self, loss: Tensor, batch_size: int) -> Tensor:
        """Return the loss times the batch's share of a step that accumulates several, as if all were full.

        Lightning divides by their number. `on_before_optimizer_step` corrects a step of fewer images, so that
        it takes the mean gradient over its images, as a step of one large batch would.
        """
        if self.config.optim.accumulate_batches == 1:
            return loss
        self._num_accumulated += batch_size
        return loss * (batch_size / self.config.data.batch_size)

    def _training_logits(self, images: Tensor) -> Tensor:
        try:
            return self.classifier(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise BatchSizeError(
                f"a batch of {len(images)} leaves a batch norm one value per channel, which has no spread: "
                "use data.batch_size=2 or more, a larger model.image_size, or a model without batch norm"
            ) from error

    def on_train_start(self) -> None:
        if self._teacher is not None:
            self._teacher.to(self.device)
        # Only now is the classifier on its device, with the weights of a checkpoint.
        if isinstance(self.config.average, Ema | Swa):
            max_epochs = self.config.trainer.max_epochs
            average = WeightAverage(self.classifier, self.config.average, max_epochs, self.ranks)
            if self._resumed_average is not None:
                average.restore(*self._resumed_average)
                self._resumed_average = None
            self._average = (average,)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        rho = self.config.optim.sam_rho
        closure = (
            partial(self._second_gradient, optimizer, optimizer_closure, rho) if rho else optimizer_closure
        )
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        for average in self._average:
            is_last = batch_idx + 1 == self.num_batches
            with self.trainer.precision_plugin.train_step_context():
                average.after_step(self.classifier, epoch, is_last=is_last, images=self._images_again)

    def _second_gradient(self, optimizer: Any, closure: Callable[[], Any], rho: float) -> Any:
        """Run a step's closure, then its batches once more, uphill; see `sam.py`.

        The second pass draws dropout anew. It counts neither for the training metrics nor for the statistics
        of batch norms.
        """
        loss = closure()
        batches, self._step_batches = self._step_batches, []
        self._drop_gradients_at_rest()
        counted = self.train_means, self._num_accumulated
        self.train_means = RunningMeans(is_multilabel=self.config.is_multilabel)
        paused = pause_tracking(self._norms)
        strategy = self.trainer.strategy
        with uphill(self.classifier.parameters(), rho):
            optimizer.zero_grad()
            for batch, batch_idx in batches:
                again = strategy.training_step(batch, batch_idx)
                assert isinstance(again, Tensor), "what training_step returns"
                strategy.backward(again / self.config.optim.accumulate_batches, optimizer)
        resume_tracking(paused)
        self.train_means, self._num_accumulated = counted
        return loss

    def _images_again(self) -> Iterator[Tensor]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        found: Iterator[Tensor] = data.images_again(self.current_epoch, self.device)
        return found

    def _validated(self) -> ImageClassifier:
        """Return the average of the weights as soon as there is one, else the classifier that trains."""
        begun = [average.classifier for average in self._average if average.has_begun]
        return begun[0] if begun else self.classifier

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if not (self.ranks.is_alone or self.trainer.val_dataloaders.eval_shard.counts):  # type: ignore[union-attr]
            return
        images, labels = batch
        logits, plain = predict_logits(self._validated(), images, self.config.evaluation.tta)
        self._val_batches.append((logits.float(), labels))
        if self.config.evaluation.tta != "none":
            self._val_without.append(
                plain.float() if self.config.is_multilabel else plain.argmax(1) == labels
            )

    def on_train_epoch_start(self) -> None:
        # Dropout and stochastic depth draw from a seed of epoch and rank, so that a resumed epoch draws the
        # numbers that it would have drawn in an uninterrupted run.
        torch.manual_seed(self.config.seed * 1_000_003 + self.current_epoch + (self.ranks.rank << 32))
        self.train_means.reset()
        self._num_accumulated = 0
        self._step_batches = []
        if self.config.finetune.thaws:
            thaw(
                self.classifier,
                self.config.finetune,
                self.current_epoch,
                set_gradients=self.ranks.is_alone,  # DDP expects them: see on_before_optimizer_step
            )
            self._norms = learning_norms(self.classifier)
        # Parameters whose schedule has ended (Muon's stem) need no gradients: without them, backward is
        # cheaper.
        self._at_rest = parameters_at_rest(self.trainer.optimizers[0])
        if self.ranks.is_alone:
            for parameter in self._at_rest:
                parameter.requires_grad_(False)

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if self.config.optim.sam_rho is not None:
            self._step_batches.append((batch, batch_idx))

    def on_before_backward(self, loss: Tensor) -> None:
        # With gradient checkpointing, layers run forward again in the backward pass: batch norms must not
        # track the statistics of a batch twice.
        if self.config.trainer.gradient_checkpointing:
            self._paused = pause_tracking(self._norms)

    def on_after_backward(self) -> None:
        resume_tracking(self._paused)
        self._paused = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._drop_gradients_at_rest()
        full = self.config.data.batch_size * self.config.optim.accumulate_batches
        if self._num_accumulated not in (0, full):
            for parameter in self.classifier.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(full / self._num_accumulated)
        self._num_accumulated = 0

    def _drop_gradients_at_rest(self) -> None:
        """Drop gradients that several ranks compute in vain; without one a parameter stays as it is.

        DDP waits for the gradients of all parameters that had one when training began.
        """
        for parameter in self._at_rest:
            parameter.grad = None

    def on_validation_epoch_start(self) -> None:
        self._val_batches.clear()
        self._val_without.clear()
        # Each rank's batch norms have tracked the statistics of its own shards.
        if not self.config.trainer.sync_batchnorm:
            self.ranks.average(running_statistics(self._norms))

    def on_validation_epoch_end(self) -> None:
        self.train_means.reduce(self.ranks)
        logits = self.ranks.gather([logits for logits, _ in self._val_batches])
        labels = self.ranks.gather([labels for _, labels in self._val_batches])
        has_tta = self.config.evaluation.tta != "none"
        without = self.ranks.gather(self._val_without) if has_tta else None
        if self.ranks.is_zero:
            self.val_logits = torch.cat(logits).cpu()
            self.val_metrics = _val_metrics(self.val_logits, torch.cat(labels).cpu())
            if without is not None:
                self.val_metrics |= self._without_tta(torch.cat(without).cpu(), torch.cat(labels).cpu())
        self.val_metrics = self.ranks.broadcast(self.val_metrics)
        schedule, monitor = self.lr_schedulers(), self.config.trainer.monitor
        if isinstance(schedule, PlateauLR) and monitor.metric in self.val_metrics:
            score = self.val_metrics[monitor.metric]
            schedule.end_epoch(-score if monitor.direction == "minimize" else score)

    def _without_tta(self, without: Tensor, labels: Tensor) -> dict[str, float]:
        """Return accuracy or mAP without test-time augmentation, where there is the one with it.

        Args:
            without: bool (N,), which images are right; of multi-label images their logits, (N, K).
        """
        if "val/accuracy" in self.val_metrics:
            return {"val/accuracy_no_tta": float(without.float().mean())}
        if "val/mAP" in self.val_metrics and without.isfinite().all():
            return {"val/mAP_no_tta": multilabel_metrics(without.numpy(), labels.numpy())["mAP"]}
        return {}

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.classifier, self.config.optim, self.config.finetune)
        steps = self.config.optim.steps_per_epoch(self.num_batches)
        schedule = build_schedule(
            optimizer, self.config.optim.schedule, steps, self.config.trainer.max_epochs
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning's own method refuses fused optimisers with bf16 and fp16, because they unscale gradients
        # themselves. With bf16 there is no scale. With fp16 the scaler removes it here, before the norm is
        # taken, and remembers that, so that the fused optimiser does not divide again.
        optim = self.config.optim
        if (gradient_clip_val, optim.clip_grad_value, optim.clip_grad_adaptive) == (None, None, None):
            return
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # for other optimisers Lightning has done so already
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        if optim.clip_grad_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, optim.clip_grad_value)
        if optim.clip_grad_adaptive is not None:
            clip_adaptively(self.classifier.network, optim.clip_grad_adaptive)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        validates = not self.config.data.train_on_val
        score = self.val_metrics[self.config.trainer.monitor.metric] if validates else math.nan
        for average in self._average:
            average.put_into(checkpoint, PREFIX)
        checkpoint[SECTION] = {**self.facts.to_dict(), "epoch": self.current_epoch, "score": score}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed_average = take_from(checkpoint, PREFIX)


def _val_metrics(logits_NK: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the finite metrics, as "val/..."; if any logit is not finite, return a val/loss of NaN alone."""
    if not logits_NK.isfinite().all():
        return {"val/loss": math.nan}
    measure = multilabel_metrics if labels.ndim == 2 else split_metrics
    metrics = measure(logits_NK.numpy(), labels.numpy())
    return {f"val/{name}": value for name, value in metrics.items() if math.isfinite(value)}
