"""What makes a sweep the same sweep: the question that it asks, and the code that its trials were run with.

A sweep may be continued, with a larger budget too, only as the very question that its trials answered, and
with the same code: an answer must not come from two programs unnoticed. `locate.py` asks both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import optuna

import harness
from harness.config.compose import SweepPlan, leaves_by_path
from harness.errors import SweepError
from harness.search.study import keys

# Neither where things lie nor how fast they are computed is part of the question.
ELSEWHERE = ("tracking.", "data.dir", "data.cache_dir", "data.download", "evaluate_test")
ONCE = ("trainer.monitor.",)  # sweep.metric says it
MACHINE = (
    "trainer.device",
    "trainer.threads",
    "trainer.devices",
    "trainer.keep_memory",
    "trainer.compile",
    "data.max_memory_share",
    "data.num_workers",
    "data.feature_cache_gb",
)
BUDGET = {
    "name", "num_trials", "max_minutes", "slots", "threads_per_trial",
    "max_retries", "max_consecutive_failures", "evaluate_test", "devices_per_trial",
    "enqueue", "target", "patience_trials",
    "executor", "storage", "trial_timeout_minutes", "grace_seconds", "lease_seconds",
    "allow_changed_code",
    "checkpoint_gb", "keep_checkpoints", "min_free_gb",
}  # fmt: skip
SHOWN_DIFFERENCES, SHOWN_FILES = 4, 3
ABSENT = "(absent)"


def sweep_question(plan: SweepPlan, data_digest: str) -> dict[str, Any]:
    """Return the question as flat JSON values: space, rules, objective, sampler, pruner, base, data."""
    searched = set(plan.sweep.space)
    base = {
        path: value
        for path, value in leaves_by_path(plan.base.to_dict()).items()
        if not path.startswith(ELSEWHERE + MACHINE + ONCE) and path not in searched
    }
    sweep = {
        f"sweep.{k}": v for k, v in leaves_by_path(plan.sweep.model_dump(mode="json", exclude=BUDGET)).items()
    }
    some_arms = {
        f"{path} (where it is)": value for path, value in plan.arm_values.items() if path not in base
    }
    order = {"sweep.space (order)": list(plan.sweep.space)}
    return {**sweep, **order, **base, **some_arms, "data digest": data_digest}


def fingerprint(question: Mapping[str, Any]) -> str:
    """Return a hash of the question that holds across processes and key orders."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


def sweep_name(plan: SweepPlan, data_name: str, question: Mapping[str, Any]) -> str:
    """Return the name asked for, else one that another question cannot have."""
    return plan.sweep.name or f"{plan.sweep_file}-{data_name}-{fingerprint(question)[:6]}"


def check_same_question(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to mix two questions under one name.

    Raises:
        SweepError: they differ; the message shows where, and whether the one may become the other.
    """
    changes = differences(before, now)
    if not changes:
        return
    is_wider = not differences(before, now, but_wider=True)
    raise SweepError(
        f"sweep {name!r} exists and asks something else: {shorten(changes)}; "
        + ("widen it on purpose with --extend, " if is_wider else "")
        + "give this one another sweep.name, or repeat the other as it was"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, but_wider: bool = False) -> list[str]:
    """Return `path: old → new` for every path whose value differs, the objective's and the space's first.

    Args:
        but_wider: leave out what only asks for more, see :func:`is_wider`.
    """
    paths = sorted({*before, *now}, key=lambda path: (not path.startswith("sweep."), path))
    pairs = [(path, before.get(path, ABSENT), now.get(path, ABSENT)) for path in paths]
    return [
        f"{path}: {_short(old)} → {_short(new)}"
        for path, old, new in pairs
        if old != new and not (but_wider and is_wider(path, old, new))
    ]


def is_wider(path: str, old: Any, new: Any) -> bool:
    """Return whether the trials so far remain trials of it: a larger range, more values or constraints."""
    is_space = path.startswith("sweep.space.") and ".when." not in path
    if path == "sweep.constraints" or (is_space and path.endswith(".values")):
        return {json.dumps(value) for value in old} < {json.dumps(value) for value in new}
    if is_space and path.endswith((".low", ".high")) and ABSENT not in (old, new):
        return bool(new < old if path.endswith(".low") else new > old)
    return False


def shorten(changes: Sequence[str]) -> str:
    """Return changes in one line."""
    more = f" and {len(changes) - SHOWN_DIFFERENCES} more" if len(changes) > SHOWN_DIFFERENCES else ""
    return ", ".join(changes[:SHOWN_DIFFERENCES]) + more


def _short(value: Any) -> str:
    text = value[:12] if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"


# ── the code ──────────────────────────────────────────────────────────────────────────────────────


@cache
def code_digests() -> dict[str, str]:
    """Return a digest of every source file of this package by its path in it."""
    root = Path(harness.__file__).parent
    files = sorted(root.rglob("*.py"))
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in files
    }


def check_code(study: optuna.Study, *, allow_changes: bool) -> None:
    """Refuse to go on with other code than the sweep began with; note the code where there is none yet.

    Raises:
        SweepError: files have changed, and nobody said that this is meant.
    """
    before, now = study.user_attrs.get(keys.CODE), code_digests()
    if before is not None and before != now and not allow_changes:
        changed = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
        more = f" and {len(changed) - SHOWN_FILES} more" if len(changed) > SHOWN_FILES else ""
        raise SweepError(
            f"the code has changed since sweep {study.study_name!r} began "
            f"({', '.join(changed[:SHOWN_FILES])}{more}): put it back, give a new sweep.name, or add "
            "sweep.allow_changed_code=true if the change cannot matter"
        )
    if before != now:
        study.set_user_attr(keys.CODE, now)
