"""Rejects a trial that needs at least as much memory as an earlier trial that ran out of it.

`attempt.py` stores the footprint (model, finetuning, optimiser, device, batch size) of a trial that ran out
of memory, and compares each new trial with all footprints stored in the sweep.
"""

from __future__ import annotations

from typing import Any

import optuna

from harness.config.schema import RunConfig
from harness.search.study import keys

BATCH_SIZE = "batch_size"
# Settings of a finetuning policy that do not change how much memory a batch needs.
_NOT_IN_MEMORY = {
    "backbone_lr_scale", "layer_decay", "layer_decay_by", "reinit_groups",
    "batch_norm", "cache_features", "feature_views", "alpha",
    "start_groups", "every_epochs", "groups_at_once", "warmup_epochs", "probe_epochs", "finetune_lr_scale",
}  # fmt: skip


def footprint(config: RunConfig) -> dict[str, Any]:
    """Return the batch size, and the settings that decide how much memory a batch of that size needs."""
    from harness.training.devices.machine import resolve_machine

    machine = resolve_machine(config.trainer).describe()
    return {
        BATCH_SIZE: config.data.batch_size,
        "model": config.model.model_dump(mode="json", include={"kind", "name", "image_size"})
        | ({} if getattr(config.model, "stem", "default") == "default" else {"stem": "small_image"}),
        "finetune": config.finetune.model_dump(mode="json", exclude=_NOT_IN_MEMORY),
        "optimizer": config.optim.algorithm,
        "average": config.average.kind,
        "gradient_checkpointing": config.trainer.gradient_checkpointing,
        **{key: machine[key] for key in ("device", "device_name", "precision")},
    }


def why_it_cannot_fit(study: optuna.Study, needed: dict[str, Any]) -> str | None:
    """Return which trial with these settings, at this or a smaller batch size, ran out of memory, or None."""
    for trial in study.get_trials(deepcopy=False):
        known = trial.user_attrs.get(keys.OUT_OF_MEMORY)
        if known is not None and needed == {**known, BATCH_SIZE: max(known[BATCH_SIZE], needed[BATCH_SIZE])}:
            return f"out of memory, as trial {trial.number} at batch size {known[BATCH_SIZE]}"
    return None
