"""Lightning's loop, set up to do what it is told and nothing else, and resumed where it was interrupted."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from harness.config.schema import RunConfig
from harness.errors import DivergedError
from harness.training.callbacks import EpochRecorder, KeepCheckpoints, StopOnRequest
from harness.training.checkpoint_io import AtomicCheckpointIO
from harness.training.collectives import Ranks, current_ranks, exit_if_peer_died
from harness.training.machine import Machine
from harness.training.module import ClassifierModule
from harness.training.result import Decision, Status
from harness.training.resume_point import find_resume_point

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
        CheckpointError: there are checkpoints of another question, or no room for this one's.
        Interrupted: it was asked to stop.
        PeerDied: another rank has gone.
    """
    trainer = build_trainer(module.config, recorder, machine, checkpoint_dir, stop_requested)
    resume_from = current_ranks().from_zero(  # alone: it moves files
        lambda: find_resume_point(checkpoint_dir, module.facts, recorder.select, recorder.monitor)
    )
    module.to(memory_format=torch.channels_last)
    if module.config.trainer.compile:
        module.classifier.network.compile()
    with exit_if_peer_died():
        trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)
    if recorder.diverged:
        raise DivergedError(
            f"the loss became NaN or infinite in epoch {len(recorder.history) + 1}: lower optim.lr "
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
        KeepCheckpoints(checkpoint_dir, recorder),
    ]
    if stop_requested is not None:
        callbacks.append(StopOnRequest(stop_requested))
    return pl.Trainer(
        accelerator="gpu" if machine.device.type == "cuda" else machine.device.type,
        **_rank_arguments(current_ranks(), AtomicCheckpointIO(stop_requested or (lambda: None))),
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


def _rank_arguments(ranks: Ranks, checkpoint_io: AtomicCheckpointIO) -> dict[str, Any]:
    """Return the Trainer's arguments for one process, or for one of several that torch's agent started."""
    if ranks.is_alone:
        return {"devices": 1, "plugins": [checkpoint_io, LightningEnvironment()]}  # in a Slurm job too
    return {
        "devices": ranks.world_size,
        # The module puts the ranks' batch norms together itself, once an epoch instead of every step.
        "strategy": DDPStrategy(forward_sync_buffers=False),
        "plugins": [checkpoint_io, TorchElasticEnvironment()],  # not Slurm's, which may be around us
    }


def quiet_lightning() -> None:
    """Silence hints that do not apply: our batches come ready-made from memory, without workers."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings(
        "ignore", message=".*callbacks used to create the checkpoint.*"
    )  # older versions'
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # we start our ranks
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen ones
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6.6 on torch 2.14
