"""Lightning's loop, set up to do what it is told and nothing else, and resumed where it was interrupted."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from harness.config.schema import RunConfig
from harness.errors import CheckpointError, DivergedError
from harness.training.callbacks import EpochRecorder, StopOnRequest
from harness.training.checkpoint import AtomicCheckpointIO, load_section
from harness.training.distributed import Ranks, current_ranks, lost_peers_end_us
from harness.training.machine import Machine
from harness.training.module import ClassifierModule
from harness.training.result import Decision, Status

STATUS_OF: dict[Decision, Status] = {
    "continue": "finished",
    "prune": "pruned",
    "interrupt": "interrupted",
}


def fit(
    module: ClassifierModule,
    data: pl.LightningDataModule,
    recorder: EpochRecorder,
    machine: Machine,
    checkpoint_dir: Path,
    stop_requested: Callable[[], bool] | None,
) -> Status:
    """Run Lightning's loop without its overhead, resuming where there is something to resume.

    Raises:
        DivergedError: the loss became NaN or infinite.
        Interrupted: it was asked to stop.
        PeerLost: another rank has gone.
    """
    trainer = build_trainer(module.config, recorder, machine, checkpoint_dir, stop_requested)
    last = checkpoint_dir / "last.ckpt"
    if last.is_file():
        check_resumable(last, module)
    module.to(memory_format=torch.channels_last)
    if module.config.trainer.compile:
        module.classifier.network.compile()
    with lost_peers_end_us():
        trainer.fit(module, data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    if recorder.diverged:
        raise DivergedError(
            f"the loss became NaN or infinite in epoch {trainer.current_epoch + 1}: lower optim.lr "
            f"(now {module.config.optim.lr:g}), or set optim.clip_grad_norm"
        )
    return STATUS_OF[recorder.decision]


def build_trainer(
    config: RunConfig,
    recorder: EpochRecorder,
    machine: Machine,
    checkpoint_dir: Path,
    stop_requested: Callable[[], bool] | None,
) -> pl.Trainer:
    """Return a Trainer that logs nothing itself and keeps the best and the last checkpoint."""
    quiet_lightning()
    callbacks: list[pl.Callback] = [
        recorder,
        ModelCheckpoint(
            checkpoint_dir,
            filename="best",
            monitor="val/accuracy" if config.trainer.select == "best" else None,  # None: the newest
            mode="max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        # Its own callback: the `save_last` of the one above leaves out epochs that are not the best.
        ModelCheckpoint(
            checkpoint_dir, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        ),
    ]
    if stop_requested is not None:
        callbacks.append(StopOnRequest(stop_requested))
    if config.trainer.early_stopping_patience is not None:
        patience = config.trainer.early_stopping_patience
        callbacks.append(
            EarlyStopping("val/accuracy", mode="max", patience=patience, check_on_train_epoch_end=True)
        )
    return pl.Trainer(
        accelerator="gpu" if machine.device.type == "cuda" else machine.device.type,
        **_together(current_ranks()),
        precision=machine.lightning_precision,  # type: ignore[arg-type]
        max_epochs=config.trainer.max_epochs,
        gradient_clip_val=config.optim.clip_grad_norm,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=checkpoint_dir,
    )


def _together(ranks: Ranks) -> dict[str, Any]:
    """Return the Trainer's arguments for one process, or for one of several that torch's agent started."""
    if ranks.is_alone:
        return {"devices": 1, "plugins": [AtomicCheckpointIO()]}
    return {
        "devices": ranks.world,
        # The module puts the ranks' batch norms together itself, once an epoch instead of every step.
        "strategy": DDPStrategy(forward_sync_buffers=False),
        "plugins": [AtomicCheckpointIO(), TorchElasticEnvironment()],  # not Slurm's, which may be around us
    }


def quiet_lightning() -> None:
    """Silence hints that do not apply: our batches come ready-made from memory, without workers."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen ones
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # what is logged is the sum over ranks
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6.6 on torch 2.14


def check_resumable(last: Path, module: ClassifierModule) -> None:
    """Refuse to go on from a checkpoint of another model or other data.

    Raises:
        CheckpointError: the checkpoint is damaged, or another question's.
    """
    before = load_section(last)
    now = module.facts.to_dict()
    for part in ("data_digest", "class_names"):
        if before[part] != now[part]:
            raise CheckpointError(f"{last} was trained on other data: name another folder or delete it")
    for part in ("model", "finetune", "augment", "optim", "seed"):
        if before["config"][part] != now["config"][part]:
            raise CheckpointError(
                f"{last} was trained with another {part!r} section: repeat the run as it was, or delete it"
            )
