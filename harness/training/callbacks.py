"""What happens between epochs: record, decide whether to go on, stop when asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from harness.config.monitor import MonitorConfig
from harness.config.schema import TrainerConfig
from harness.errors import ConfigError
from harness.tracking import Tracker, names
from harness.training.collectives import current_ranks
from harness.training.module import ClassifierModule
from harness.training.result import Decision, EpochReport

BEST, LAST = "best.ckpt", "last.ckpt"


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """The run was asked to stop; its last checkpoint stands."""


class StopOnRequest(pl.Callback):
    """Leaves `fit` at the end of a batch when somebody asked for it (a signal, a lost coordinator).

    The unfinished epoch is dropped: raising skips the epoch's end, where a checkpoint would be written.
    Ranks leave together, whichever of them was asked.
    """

    def __init__(self, stop_requested: Callable[[], bool]) -> None:
        self.stop_requested = stop_requested
        self.ranks = current_ranks()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.ranks.any(self.stop_requested()):
            raise Interrupted

    def on_validation_batch_end(self, *_: Any) -> None:
        # Ranks may differ by a batch here, so that they cannot agree after each; the epoch's end is near.
        if self.ranks.is_alone and self.stop_requested():
            raise Interrupted


class EpochRecorder(pl.Callback):
    """The one path for metrics: gathers an epoch's, hands them to the tracker, asks whether to go on."""

    def __init__(
        self,
        tracker: Tracker,
        trainer: TrainerConfig,
        on_epoch: Callable[[EpochReport], Decision] | None = None,
    ) -> None:
        """
        Args:
            trainer: says what decides which epoch is kept, and when the run ends early.
        """
        self.tracker = tracker
        self.on_epoch = on_epoch
        self.monitor, self.select = trainer.monitor, trainer.select
        self.patience = trainer.early_stopping_patience
        self.history: list[dict[str, float]] = []  # one entry an epoch, kept in every checkpoint
        self.decision: Decision = "continue"
        self.diverged = False
        self.best_logits: Tensor | None = None  # of the validation images at the best epoch of this process
        self.best_logits_epoch = -1
        self.ranks = current_ranks()
        self.seconds_before = 0.0  # that earlier attempts have trained
        self._began = time.perf_counter()
        self._started = self._trained = 0.0
        self._learning_rate = math.nan  # of the newest optimiser step

    @property
    def best_epoch(self) -> int:
        """The epoch that is kept (0-based)."""
        return best_epoch(self.history, self.monitor, self.select)

    @property
    def best_metrics(self) -> dict[str, float]:
        """What was measured on the validation images in the epoch that is kept."""
        return _of_validation(self.history[self.best_epoch])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run that was killed after its last epoch, but before it had told anybody, has nothing to train.
        trainer.should_stop = self._is_over()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(pl_module, ClassifierModule)
        # Here, as the schedule has moved on to the next step's rate by the end of the batch.
        self._learning_rate = _learning_rate(pl_module.config.optim.lr, optimizer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ClassifierModule)
        metrics = self._metrics(trainer, pl_module)
        if not (math.isfinite(metrics["train/loss"]) and math.isfinite(metrics["val/loss"])):
            self.diverged = trainer.should_stop = True
            return
        if self.monitor.metric not in metrics:
            raise ConfigError(
                f"trainer.monitor.metric={self.monitor.metric} has no value where all validation images are "
                "of one class: choose another metric or other images"
            )
        self.history.append(metrics)
        epoch = trainer.current_epoch
        if self.best_epoch == epoch:
            self.best_logits, self.best_logits_epoch = pl_module.val_logits, epoch
        self._log_epoch(epoch)
        if self.on_epoch is not None:
            self.decision = self.on_epoch(EpochReport(epoch, int(trainer.max_epochs or 0), metrics))
        self.decision = self.ranks.broadcast(self.decision)
        trainer.should_stop = self._is_over() or self.decision == "interrupt"

    def _is_over(self) -> bool:
        """Tell whether the run ends here for good, from nothing but what a checkpoint holds."""
        if self.decision == "prune":
            return True
        if self.patience is None or not self.history:
            return False
        return len(self.history) - 1 - best_epoch(self.history, self.monitor, "best") >= self.patience

    def _log_epoch(self, epoch: int) -> None:
        """Record an epoch; where it is the best so far, under `best/` too, so that lists of runs show it."""
        metrics = self.history[epoch]
        best: dict[str, float] = {}
        if best_epoch(self.history[: epoch + 1], self.monitor, self.select) == epoch:
            best = {names.BEST + name: value for name, value in _of_validation(metrics).items()}
            best[names.BEST_EPOCH] = epoch
        self.tracker.log_epoch(epoch, {**metrics, **best})

    def _metrics(self, trainer: pl.Trainer, module: ClassifierModule) -> dict[str, float]:
        train_loss, train_accuracy = module.train_means.compute()
        now = time.perf_counter()
        return {
            "train/loss": train_loss,
            "train/accuracy": train_accuracy,
            **module.val_metrics,
            "lr": self._learning_rate,
            "images_per_second": module.train_means.num_images / max(self._trained - self._started, 1e-9),
            "epoch_seconds": now - self._started,
            names.TRAINED_SECONDS: self.seconds_before + now - self._began,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "is_pruned": self.decision == "prune"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the epochs before an interruption; the tracker gets those it has not seen."""
        self.history = list(state_dict["history"])
        if state_dict.get("is_pruned"):  # older checkpoints do not say
            self.decision = "prune"
        if self.history:
            in_epochs = sum(metrics["epoch_seconds"] for metrics in self.history)  # older ones know no more
            self.seconds_before = self.history[-1].get(names.TRAINED_SECONDS, in_epochs)
        for epoch in range(len(self.history)):
            self._log_epoch(epoch)


def history_in(raw: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the epochs that a checkpoint, as it was loaded, tells of."""
    history: list[dict[str, float]] = raw["callbacks"][EpochRecorder.__qualname__]["history"]
    return history


class KeepCheckpoints(Checkpoint):
    """Writes `last.ckpt` after each epoch, and `best.ckpt` where the recorder says that it is the best.

    Lightning's ModelCheckpoint has an account of its own of what is best, and drops it where the folder is
    found under another path; it would also keep an epoch whose loss is NaN.
    """

    def __init__(self, folder: Path, recorder: EpochRecorder) -> None:
        self.folder = folder
        self.recorder = recorder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.recorder.diverged:
            return
        if self.recorder.best_epoch == trainer.current_epoch:  # first: `last.ckpt` counts on it
            trainer.save_checkpoint(self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)


def _of_validation(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("val/")}


def best_epoch(
    history: Sequence[Mapping[str, float]], monitor: MonitorConfig, select: Literal["best", "last"]
) -> int:
    """Return the epoch (0-based) whose checkpoint is kept: the first of those with the best score."""
    if select == "last":
        return len(history) - 1
    return monitor.best([metrics[monitor.metric] for metrics in history])


def _learning_rate(base_lr: float, optimizer: torch.optim.Optimizer) -> float:
    """Return what the schedule has made of `optim.lr`; groups may have multiples of it."""
    group = optimizer.param_groups[0]
    return float(base_lr * (group["lr"] / group["initial_lr"]))
