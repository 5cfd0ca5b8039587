"""The LightningModule: loss, optimiser, and metrics summed on the device, read once an epoch."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.analysis.metrics import split_metrics
from harness.config.schema import RunConfig
from harness.errors import BatchSizeError
from harness.models import ImageClassifier
from harness.models.sync_norm import learning_norms, running_statistics
from harness.training.checkpoint import SECTION, ModelFacts
from harness.training.collectives import Ranks, current_ranks
from harness.training.optim import build_optimizer, build_schedule
from harness.training.tta import predict_logits


class RunningMeans:
    """Mean loss and accuracy of an epoch's training batches, summed on the device without waiting for it.

    Validation metrics come from :func:`split_metrics` alone, which `evaluate` calls too. torchmetrics would
    do for the means, but its update costs about five times as much per step as this one.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.loss_sum: Tensor | float = 0.0
        self.num_correct: Tensor | float = 0.0
        self.num_images = 0

    def update(self, loss: Tensor, logits_BK: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            labels: int64 (B,), or probabilities (B, K) of mixed images, whose dominant class is what counts.
        """
        labels_B = labels if labels.ndim == 1 else labels.argmax(1)
        batch = labels_B.shape[0]
        self.loss_sum = self.loss_sum + loss.detach().float() * batch
        self.num_correct = self.num_correct + (logits_BK.argmax(1) == labels_B).sum()
        self.num_images += batch

    def reduce(self, ranks: Ranks) -> None:
        """Add up what all ranks have counted."""
        if not ranks.is_alone:
            own = [float(self.loss_sum), float(self.num_correct), float(self.num_images)]
            self.loss_sum, self.num_correct, num_images = ranks.sum(own)
            self.num_images = int(num_images)

    def compute(self) -> tuple[float, float]:
        """Return (mean loss, accuracy); this is where the device is waited for."""
        count = max(self.num_images, 1)
        return float(self.loss_sum) / count, float(self.num_correct) / count


class ClassifierModule(pl.LightningModule):
    """An :class:`ImageClassifier` with its loss and optimiser. It logs nothing: a callback records."""

    def __init__(self, classifier: ImageClassifier, config: RunConfig, facts: ModelFacts, num_batches: int):
        """
        Args:
            facts: what goes into every checkpoint beside the weights.
            num_batches: of one training epoch, for schedules that count in steps.
        """
        super().__init__()
        self.classifier = classifier
        self.config = config
        self.facts = facts
        self.num_batches = num_batches
        self.train_means = RunningMeans()
        self.val_logits = torch.empty(0)  # (N, K), float32, on the CPU of rank 0: of the newest epoch
        self.val_metrics: dict[str, float] = {}  # of the newest epoch, the same on all ranks
        self._val_batches: list[tuple[Tensor, Tensor]] = []  # logits and labels
        self.ranks = current_ranks()
        self._norms = learning_norms(classifier)
        self._at_rest: list[Tensor] = []  # parameters that have come to the end of their own schedule

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.classifier(images_BCHW)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self._training_logits(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.optim.label_smoothing)
        if self.ranks.is_alone:
            self.train_means.update(loss, logits, labels)
            return loss
        shard = self.trainer.train_dataloader.shard(batch_idx)  # type: ignore[union-attr]
        if shard.counts:
            self.train_means.update(loss, logits, labels)
        return loss * shard.weight

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

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if not (self.ranks.is_alone or self.trainer.val_dataloaders.eval_shard.counts):  # type: ignore[union-attr]
            return
        images, labels = batch
        logits, _ = predict_logits(self.classifier, images, self.config.evaluation.tta)
        self._val_batches.append((logits.float(), labels))

    def on_train_epoch_start(self) -> None:
        # Dropout and the like draw from the epoch's own stream: a resumed epoch repeats an uninterrupted one.
        torch.manual_seed(self.config.seed * 1_000_003 + self.current_epoch + (self.ranks.rank << 32))
        self.train_means.reset()
        groups = self.trainer.optimizers[0].param_groups
        # What has come to the end of its own schedule needs no gradients any more.
        self._at_rest = [parameter for group in groups if group["lr"] <= 0 for parameter in group["params"]]
        if self.ranks.is_alone:
            for parameter in self._at_rest:
                parameter.requires_grad_(False)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # DDP waits for the gradient of whatever had one when it began, so there it is made and dropped.
        for parameter in self._at_rest:
            parameter.grad = None

    def on_validation_epoch_start(self) -> None:
        self._val_batches.clear()
        if not self.config.trainer.sync_batchnorm:  # what each rank has seen of its shares, put together
            self.ranks.average(running_statistics(self._norms))

    def on_validation_epoch_end(self) -> None:
        self.train_means.reduce(self.ranks)
        logits = self.ranks.gather([logits for logits, _ in self._val_batches])
        labels = self.ranks.gather([labels for _, labels in self._val_batches])
        if self.ranks.is_zero:
            self.val_logits = torch.cat(logits).cpu()
            self.val_metrics = _val_metrics(self.val_logits, torch.cat(labels).cpu())
        self.val_metrics = self.ranks.broadcast(self.val_metrics)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.classifier, self.config.optim, self.config.finetune)
        schedule = build_schedule(
            optimizer, self.config.optim.schedule, self.num_batches, self.config.trainer.max_epochs
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning's own refuses fused optimisers with bf16 and fp16, as they unscale gradients themselves.
        # With bf16 there is no scale; with fp16 the scaler takes it away here, and tells the optimiser so.
        if gradient_clip_val is None:
            return
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # of others, Lightning has unscaled the gradients before
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        score = self.val_metrics[self.config.trainer.monitor.metric]
        checkpoint[SECTION] = {**self.facts.to_dict(), "epoch": self.current_epoch, "score": score}


def _val_metrics(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Return what can be said of these answers; of answers that are no numbers, a loss of NaN alone."""
    if not logits_NK.isfinite().all():
        return {"val/loss": math.nan}
    metrics = split_metrics(logits_NK.numpy(), labels_N.numpy())
    return {f"val/{name}": value for name, value in metrics.items() if math.isfinite(value)}
