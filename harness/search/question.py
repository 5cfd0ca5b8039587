"""What a sweep asks, and whether a namesake asks the same.

A sweep may be continued, with a larger budget too, only as the very question that its trials answered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from harness.config.compose import SweepPlan, flatten
from harness.errors import SweepError

# Neither where things lie nor how fast they are computed is part of the question.
ELSEWHERE = ("tracking.", "data.dir", "data.cache_dir", "data.download", "evaluate_test")
MACHINE = (
    "trainer.device",
    "trainer.threads",
    "trainer.devices",
    "trainer.keep_memory",
    "trainer.compile",
    "data.max_memory_share",
    "data.num_workers",
)
BUDGET = {
    "name", "num_trials", "max_minutes", "slots", "threads_per_trial",
    "max_retries", "max_consecutive_failures", "evaluate_test", "devices_per_trial",
    "executor", "storage", "trial_timeout_minutes", "grace_seconds", "lease_seconds",
}  # fmt: skip
SHOWN_DIFFERENCES = 4
ABSENT = "(absent)"


def sweep_question(plan: SweepPlan, data_digest: str) -> dict[str, Any]:
    """Return the question as flat JSON values: space, rules, objective, sampler, pruner, base, data."""
    searched = set(plan.sweep.space)
    base = {
        path: value
        for path, value in flatten(plan.base.to_dict()).items()
        if not path.startswith(ELSEWHERE + MACHINE) and path not in searched
    }
    sweep = {f"sweep.{k}": v for k, v in flatten(plan.sweep.model_dump(mode="json", exclude=BUDGET)).items()}
    order = {"sweep.space (order)": list(plan.sweep.space)}
    return {**sweep, **order, **base, "data digest": data_digest}


def fingerprint(question: Mapping[str, Any]) -> str:
    """Return a hash of the question that holds across processes and key orders."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


def sweep_name(plan: SweepPlan, data_name: str, question: Mapping[str, Any]) -> str:
    """Return the name asked for, else one that another question cannot have."""
    return plan.sweep.name or f"{plan.sweep_file}-{data_name}-{fingerprint(question)[:6]}"


def check_same_question(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to mix two questions under one name.

    Raises:
        SweepError: they differ; the message shows where.
    """
    changes = differences(before, now)
    if not changes:
        return
    more = f" and {len(changes) - SHOWN_DIFFERENCES} more" if len(changes) > SHOWN_DIFFERENCES else ""
    raise SweepError(
        f"sweep {name!r} exists and asks something else: {', '.join(changes[:SHOWN_DIFFERENCES])}{more}; "
        "give this one another sweep.name, or repeat the other as it was"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return `path: old → new` for every path whose value differs, the objective's and the space's first."""
    paths = sorted({*before, *now}, key=lambda path: (not path.startswith("sweep."), path))
    pairs = [(path, before.get(path, ABSENT), now.get(path, ABSENT)) for path in paths]
    return [f"{path}: {_short(old)} → {_short(new)}" for path, old, new in pairs if old != new]


def _short(value: Any) -> str:
    text = value[:12] if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"
