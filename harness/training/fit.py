"""Lightning's training loop: how it is set up, and from which checkpoint it starts.

`train.py` calls `fit`. Lightning gets no logger, no progress bar and no checkpoint callback of its own; the
callbacks are in `callbacks.py`, the training step in `module.py`.
"""

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
from harness.training.checkpoints.checkpoint_io import AtomicCheckpointIO
from harness.training.checkpoints.resume_point import find_resume_point
from harness.training.devices.collectives import Ranks, current_ranks, exit_if_peer_died
from harness.training.devices.machine import Machine
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
    """Train to the end, from the run's last checkpoint if there is one.

    Args:
        recorder: collects the epochs' metrics, and decides when the run ends.
        checkpoint_dir: where checkpoints are looked for and written.
        stop_requested: called after each batch; True ends the run.

    Returns:
        "finished", "pruned" or "interrupted".

    Raises:
        ConfigError: an epoch has fewer batches than an optimiser step accumulates.
        DivergedError: the loss became NaN or infinite.
        CheckpointError: the folder's checkpoints are from another configuration, or there is no room for
            new ones.
        Interrupted: `stop_requested` returned True.
        PeerDied: another rank died.
    """
    module.config.optim.steps_per_epoch(module.num_batches)  # raises if an epoch has too few batches
    trainer = build_trainer(module.config, recorder, machine, checkpoint_dir, stop_requested)
    # On rank 0 alone, because `find_resume_point` renames files.
    resume_from = current_ranks().from_zero(
        lambda: find_resume_point(checkpoint_dir, module.facts, recorder.select, recorder.monitor)
    )
    module.to(memory_format=torch.channels_last)
    # `compile()` works in place, so that the tensors' names in checkpoints stay the same. It is called
    # after the checkpoint was chosen and before the Trainer gets the module.
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
    """Return a Trainer without loggers, whose callbacks keep the best and the last checkpoint."""
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
        accumulate_grad_batches=config.optim.accumulate_batches,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # our loaders give each rank its shard themselves
        default_root_dir=checkpoint_dir,
    )


def _rank_arguments(ranks: Ranks, checkpoint_io: AtomicCheckpointIO) -> dict[str, Any]:
    """Return the Trainer's arguments for a single process, or for a rank that torch's agent has started."""
    if ranks.is_alone:
        # The environment is given, because in a Slurm job Lightning would take the job's tasks for ranks.
        return {"devices": 1, "plugins": [checkpoint_io, LightningEnvironment()]}
    return {
        "devices": ranks.world_size,
        # The module averages the batch norms' statistics over the ranks once an epoch; DDP would copy rank
        # 0's to all others before every step.
        "strategy": DDPStrategy(forward_sync_buffers=False),
        "plugins": [checkpoint_io, TorchElasticEnvironment()],
    }


def quiet_lightning() -> None:
    """Silence Lightning's hints that do not apply here; the comments say why."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    # Batches are cut from arrays in memory: worker processes would only copy them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # With data.train_on_val there is nothing to validate on.
    warnings.filterwarnings("ignore", message="Total length of `BatchLoader` across ranks is zero.*")
    # Checkpoints of earlier versions name callbacks that are gone.
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
    # In a Slurm job, too, `launch_ranks.py` starts the ranks.
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    # Frozen modules are in eval mode on purpose.
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    # Lightning 2.6.6 uses a class that torch 2.14 has deprecated.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
