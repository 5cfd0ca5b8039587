"""Lightning callbacks: they record epochs, decide when the run ends, write checkpoints, and stop on request.

`fit.py` gives them to the Trainer. `checkpoint_io.py` writes the bytes of a checkpoint; `resume_point.py`
reads the history that :class:`EpochRecorder` has left in one.
"""

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
from harness.training.devices.collectives import current_ranks
from harness.training.devices.machine_load import ENERGY, MachineLoad
from harness.training.module import ClassifierModule
from harness.training.result import Decision, EpochReport

BEST, LAST = "best.ckpt", "last.ckpt"


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """`stop_requested` returned True. The run can be resumed from its last checkpoint."""


class StopOnRequest(pl.Callback):
    """Ends `fit` after a batch, by raising :class:`Interrupted`, once `stop_requested` returns True.

    The unfinished epoch is dropped: raising skips the end of the epoch, where a checkpoint would be written.
    If one rank is asked, all ranks stop after the same batch.
    """

    def __init__(self, stop_requested: Callable[[], bool]) -> None:
        self.stop_requested = stop_requested
        self.ranks = current_ranks()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.ranks.any(self.stop_requested()):
            raise Interrupted

    def on_validation_batch_end(self, *_: Any) -> None:
        # Ranks can have different numbers of validation batches, so a collective per batch would hang. With
        # several ranks the request waits for the next training batch.
        if self.ranks.is_alone and self.stop_requested():
            raise Interrupted


class EpochRecorder(pl.Callback):
    """Collects the metrics of each epoch, logs them to the tracker, and decides whether the run goes on.

    All epochs are kept in `history`, which every checkpoint holds: a resumed run decides from it as an
    uninterrupted one would.
    """

    def __init__(
        self,
        tracker: Tracker,
        trainer: TrainerConfig,
        on_epoch: Callable[[EpochReport], Decision] | None = None,
    ) -> None:
        """
        Args:
            trainer: the section `trainer` of the configuration. `monitor` and `select` choose the epoch that
                is kept, `early_stopping_patience` can end the run early.
            on_epoch: called on rank 0 after each epoch; returns whether the run goes on.
        """
        self.tracker = tracker
        self.on_epoch = on_epoch
        # Called with each epoch that is the best so far, and its validation logits.
        self.on_better: Callable[[int, Tensor], None] | None = None
        self.monitor, self.select = trainer.monitor, trainer.select
        self.patience, self.end_after = trainer.early_stopping_patience, trainer.end_after
        self.validates = True  # whether there are validation images; set when the training starts
        self.history: list[dict[str, float]] = []  # the metrics of each epoch
        self.decision: Decision = "continue"
        self.diverged = False
        self.best_logits: Tensor | None = None  # of validation, in the best epoch that was trained here
        self.best_logits_epoch = -1
        self.ranks = current_ranks()
        self.load: MachineLoad | None = None  # of this machine; set before the training starts
        self._energy_before: dict[str, float] | None = None  # of the epochs before this process resumed them
        self.seconds_before = 0.0  # training time before this process resumed the run
        self._began = time.perf_counter()
        self._started = self._trained = 0.0
        self._learning_rate = math.nan  # in the latest optimiser step

    @property
    def best_epoch(self) -> int:
        """The epoch that is kept (0-based)."""
        return best_epoch(self.history, self.monitor, self.select)

    @property
    def best_metrics(self) -> dict[str, float]:
        """The validation metrics ("val/...") of the epoch that is kept."""
        return _of_validation(self.history[self.best_epoch])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ClassifierModule)
        self.validates = not pl_module.config.data.train_on_val
        # A run that was killed after its last epoch and before it was recorded has nothing left to train.
        trainer.should_stop = self._is_over()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.load is not None:
            self.load.sample_if_due()

    def on_validation_batch_end(self, *_: Any) -> None:
        if self.load is not None:
            self.load.sample_if_due()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(pl_module, ClassifierModule)
        # Read before the step: at the end of the batch the schedule has already set the next step's rate.
        self._learning_rate = _learning_rate(pl_module.config.optim.lr, optimizer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ClassifierModule)
        if not self.validates:
            self._trained = time.perf_counter()
        # Sampled before the metrics, which hold the energy up to now.
        system = {} if self.load is None else self.load.take_means()
        metrics = self._metrics(trainer, pl_module)
        losses = [metrics[name] for name in ("train/loss", "val/loss") if name in metrics]
        if not all(map(math.isfinite, losses)):
            self.diverged = trainer.should_stop = True
            return
        if self.validates and self.monitor.metric not in metrics:
            raise ConfigError(
                f"trainer.monitor.metric={self.monitor.metric} has no value where all validation images are "
                "of one class: choose another metric or other images"
            )
        self.history.append(metrics)
        epoch = trainer.current_epoch
        if self.best_epoch == epoch and self.validates:
            self.best_logits, self.best_logits_epoch = pl_module.val_logits, epoch
        self._log_epoch(epoch, system)
        if self.best_epoch == epoch and self.on_better is not None and pl_module.val_logits is not None:
            self.on_better(epoch, pl_module.val_logits)
        if self.on_epoch is not None:
            self.decision = self.on_epoch(EpochReport(epoch, int(trainer.max_epochs or 0), metrics))
        self.decision = self.ranks.broadcast(self.decision)
        trainer.should_stop = self._is_over() or self.decision == "interrupt"

    def _is_over(self) -> bool:
        """Tell whether the run has come to its end, is pruned or out of patience, also when it is resumed."""
        if self.decision == "prune" or (self.end_after is not None and len(self.history) >= self.end_after):
            return True
        if self.patience is None or not self.history:
            return False
        return len(self.history) - 1 - best_epoch(self.history, self.monitor, "best") >= self.patience

    def _log_epoch(self, epoch: int, system: Mapping[str, float] | None = None) -> None:
        """Log an epoch's metrics, and what the machine did in it, which no checkpoint holds.

        If the epoch is the best so far, its validation metrics are also logged as `best/...`, which MLflow's
        lists of runs show.
        """
        metrics = self.history[epoch]
        best: dict[str, float] = {}
        if best_epoch(self.history[: epoch + 1], self.monitor, self.select) == epoch:
            best = {names.BEST + name: value for name, value in _of_validation(metrics).items()}
            best[names.BEST_EPOCH] = epoch
        self.tracker.log_epoch(epoch, {**metrics, **best, **(system or {})})

    def _metrics(self, trainer: pl.Trainer, module: ClassifierModule) -> dict[str, float]:
        train_loss, train_accuracy = module.train_means.compute()
        now = time.perf_counter()
        return {
            "train/loss": train_loss,
            "train/exact_match" if module.config.is_multilabel else "train/accuracy": train_accuracy,
            **module.val_metrics,
            "lr": self._learning_rate,
            "images_per_second": module.train_means.num_images / max(self._trained - self._started, 1e-9),
            "epoch_seconds": now - self._started,
            names.TRAINED_SECONDS: self.seconds_before + now - self._began,
            **self._energy(),
        }

    def _energy(self) -> dict[str, float]:
        """Return the energy of all epochs so far; what was not readable in one of them is left out."""
        found = {} if self.load is None else self.load.energy_wh
        if self._energy_before is None:
            return found
        before = self._energy_before
        return {name: before[name] + value for name, value in found.items() if name in before}

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "is_pruned": self.decision == "prune"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the epochs of an interrupted run, and log them again: the tracker skips what it has."""
        self.history = list(state_dict["history"])
        if state_dict.get("is_pruned"):  # absent in checkpoints of earlier versions
            self.decision = "prune"
        if self.history:
            # Checkpoints of earlier versions hold the seconds of each epoch, but not the run's.
            in_epochs = sum(metrics["epoch_seconds"] for metrics in self.history)
            self.seconds_before = self.history[-1].get(names.TRAINED_SECONDS, in_epochs)
            energy = {name: value for name, value in self.history[-1].items() if name in ENERGY}
            self._energy_before = energy
        for epoch in range(len(self.history)):
            self._log_epoch(epoch)


def history_in(raw: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the metrics of each epoch from the raw content of a checkpoint."""
    # Lightning stores a callback's state under its class name: if EpochRecorder were renamed, the history in
    # existing checkpoints would no longer be found.
    history: list[dict[str, float]] = raw["callbacks"][EpochRecorder.__qualname__]["history"]
    return history


class KeepCheckpoints(Checkpoint):
    """Writes `last.ckpt` after each epoch, and `best.ckpt` after an epoch that is the best so far.

    Lightning's ModelCheckpoint keeps its own score of the best epoch, forgets it when the folder is found
    under another path, and would keep an epoch whose loss is NaN. Here the recorder's history decides.
    """

    def __init__(self, folder: Path, recorder: EpochRecorder) -> None:
        self.folder = folder
        self.recorder = recorder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.recorder.diverged:
            return
        # `best.ckpt` first: a `last.ckpt` is resumed from only if its history's best epoch is on disk.
        if self.recorder.best_epoch == trainer.current_epoch:
            trainer.save_checkpoint(self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)


def _of_validation(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("val/")}


def best_epoch(
    history: Sequence[Mapping[str, float]], monitor: MonitorConfig, select: Literal["best", "last"]
) -> int:
    """Return the epoch (0-based) whose checkpoint is kept: the last, or the first with the best score."""
    if select == "last":
        return len(history) - 1
    return monitor.best([metrics[monitor.metric] for metrics in history])


def _learning_rate(base_lr: float, optimizer: torch.optim.Optimizer) -> float:
    """Return `optim.lr` times the schedule's factor; parameter groups may train with multiples of it."""
    group = next(group for group in optimizer.param_groups if not group.get("joins"))  # these begin at 0
    return float(base_lr * (group["lr"] / group["initial_lr"]))
