"""What a trial's memory hangs on, so that what did not fit is not tried again in the same sweep."""

from __future__ import annotations

from typing import Any

import optuna

from harness.config.schema import RunConfig
from harness.search.study import keys

BATCH_SIZE = "batch_size"
_NOT_IN_MEMORY = {"backbone_lr_scale", "cache_features", "feature_views"}  # of a finetuning policy


def footprint(config: RunConfig) -> dict[str, Any]:
    """Return the batch size, and what else must be equal for two trials to need the same memory for it."""
    from harness.training.machine import resolve_machine

    machine = resolve_machine(config.trainer).describe()
    return {
        BATCH_SIZE: config.data.batch_size,
        "model": config.model.model_dump(mode="json", include={"kind", "name", "image_size"}),
        "finetune": config.finetune.model_dump(mode="json", exclude=_NOT_IN_MEMORY),
        "optimizer": config.optim.kind,
        **{key: machine[key] for key in ("device", "device_name", "precision")},
    }


def why_it_cannot_fit(study: optuna.Study, needed: dict[str, Any]) -> str | None:
    """Return which earlier trial ran out of memory with no more than is needed now; None if none did."""
    for trial in study.get_trials(deepcopy=False):
        known = trial.user_attrs.get(keys.OUT_OF_MEMORY)
        if known is not None and needed == {**known, BATCH_SIZE: max(known[BATCH_SIZE], needed[BATCH_SIZE])}:
            return f"out of memory, as trial {trial.number} at batch size {known[BATCH_SIZE]}"
    return None
