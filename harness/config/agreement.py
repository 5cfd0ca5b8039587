"""Which values of a run's sections go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.config.schema import RunConfig


def check_agreement(config: RunConfig) -> None:
    """Refuse combinations that make no sense, whatever the values are by themselves.

    Raises:
        ValueError: naming the values and what to change.
    """
    if config.finetune.kind != "full" and not config.model.is_pretrained:
        raise ValueError(
            f"finetune={config.finetune.kind} would freeze random weights of {config.model.kind}: "
            "use finetune=full or a pretrained model"
        )
    warmup, epochs = config.optim.schedule.warmup_epochs, config.trainer.max_epochs
    if warmup >= epochs:
        raise ValueError(
            f"optim.schedule.warmup_epochs={warmup:g} leaves nothing of trainer.max_epochs={epochs}: "
            "lower it or train longer"
        )
    batch, samples = config.data.batch_size, config.data.max_train_samples
    if samples is not None and batch > samples:
        raise ValueError(
            f"data.batch_size={batch} is larger than data.max_train_samples={samples}: "
            "lower it or use more samples"
        )
    if batch % config.trainer.devices:
        raise ValueError(
            f"data.batch_size={batch} cannot be shared evenly by {config.trainer.devices} devices "
            "(trainer.devices, in a sweep sweep.devices_per_trial): use a multiple of them"
        )
