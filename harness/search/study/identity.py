"""Decides whether a command may continue the existing sweep of its name: same identity, same code.

A sweep's identity is every setting that changes what its trials mean: space, rules, objective, sampler,
pruner, the base configuration and the data. The budget and the machine are not part of it. `locate.py` checks
identity and code when it opens a sweep; `extend.py` changes the identity on purpose.
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
from harness.errors import SweepError, first_few
from harness.files import slug
from harness.search.study import keys

# Beginnings of the names of a run's settings that are not part of a sweep's identity: folders, speed, and
# the monitor, which follows from sweep.metric.
NOT_PART_OF_IDENTITY = (
    "tracking.",
    "data.dir",
    "data.cache_dir",
    "data.download",
    "evaluate_test",
    "evaluation.pictures",
    "trainer.monitor.",
    "trainer.device",
    "trainer.threads",
    "trainer.devices",
    "trainer.keep_memory",
    "trainer.compile",
    "data.max_memory_share",
    "data.num_workers",
    "data.feature_cache_gb",
)
# Settings of `sweep` that are not part of it: budget, starting points, failures, executor, storage, disk.
SWEEP_SETTINGS_NOT_PART_OF_IDENTITY = {
    "name", "num_trials", "max_minutes", "slots", "threads_per_trial",
    "max_retries", "max_consecutive_failures", "evaluate_test", "devices_per_trial",
    "enqueue", "target", "patience_trials", "replicate",
    "executor", "storage", "trial_timeout_minutes", "grace_seconds", "lease_seconds",
    "allow_changed_code",
    "checkpoint_gb", "keep_checkpoints", "min_free_gb",
}  # fmt: skip
# Settings that earlier versions did not have. At these values they are left out, so that sweeps of earlier
# versions keep their identity.
ADDED_LATER: dict[str, Any] = {
    "data.samples_per_epoch": None,
    "data.group_by": None,
    "sweep.compute_per_trial": None,
    "sweep.max_passes": None,
    "data.train_on_val": False,
    "data.images_per_class": None,
    "data.imbalance_factor": 1.0,
    "data.label_noise": 0.0,
    "data.label_noise_pairs": {},
    "data.sampling": "natural",
    "data.folds": None,
    "data.fold": 0,
    "model.stem": "default",
    "finetune.batch_norm": "auto",
    "finetune.layer_decay": 1.0,
    "finetune.layer_decay_by": "layer",
    "finetune.reinit_groups": 0,
    "trainer.end_after": None,
    "model.init": "default",
    "model.normalisation": "data",
    "optim.eps": 1e-8,
    "average.kind": "none",
    "loss.kind": "cross_entropy",
    "distill.kind": "none",
    "init_from": None,
    "loss.class_weights": "none",
    "loss.logit_adjustment": 0.0,
    "loss.l1": 0.0,
    "loss.l2": 0.0,
    "trainer.gradient_checkpointing": False,
    "optim.clip_grad_value": None,
    "optim.clip_grad_adaptive": None,
    "optim.accumulate_batches": 1,
    "optim.sam_rho": None,
    "optim.schedule.cycles": 1,
    "optim.schedule.cycle_decay": 1.0,
    "optim.schedule.power": 2.0,
    "optim.schedule.decay_share": 0.2,
    "optim.schedule.milestones": [],
    "optim.schedule.patience": 3,
}
# The same, but of networks other than timm's, which have always had them.
ADDED_LATER_BUT_FOR_TIMM: dict[str, Any] = {"model.drop_rate": 0.0, "model.drop_path_rate": 0.0}
SHOWN_DIFFERENCES, SHOWN_FILES = 4, 3
ABSENT = "(absent)"
MOST_OF_A_PART = 50  # characters of a data set's name that go into a sweep's


def sweep_identity(plan: SweepPlan, data_digest: str) -> dict[str, Any]:
    """Return a sweep's identity as flat JSON values: space, rules, objective, sampler, pruner, base, data."""
    searched = set(plan.sweep.space)
    base = {
        path: value
        for path, value in leaves_by_path(plan.base.to_dict()).items()
        if not path.startswith(NOT_PART_OF_IDENTITY) and path not in searched
    }
    sweep = {
        f"sweep.{k}": v
        for k, v in leaves_by_path(
            plan.sweep.model_dump(mode="json", exclude=SWEEP_SETTINGS_NOT_PART_OF_IDENTITY)
        ).items()
    }
    some_arms = {
        f"{path} (where it is)": value for path, value in plan.arm_values.items() if path not in base
    }
    order = {"sweep.space (order)": list(plan.sweep.space)}
    everything = {**sweep, **order, **base, **some_arms, "data digest": data_digest}
    added = ADDED_LATER | ({} if plan.base.model.kind == "timm" else ADDED_LATER_BUT_FOR_TIMM)
    return {path: v for path, v in everything.items() if path not in added or v != added[path]}


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return a hash of the identity; it does not depend on the process or the order of keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def sweep_name(plan: SweepPlan, data_name: str, identity: Mapping[str, Any]) -> str:
    """Return sweep.name, or a name that holds the identity's fingerprint."""
    # A folder gets this name, too: of "my pictures (1)" it takes "my-pictures-1".
    parts = (slug(part, also="+")[:MOST_OF_A_PART].rstrip("-.") for part in (plan.sweep_file, data_name))
    return plan.sweep.name or "-".join([*filter(None, parts), fingerprint(identity)[:6]])


def check_same_sweep(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to mix two sweeps under one name.

    Raises:
        SweepError: the identities differ; the message shows where, and whether --extend could help.
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
    """Return `key: old → new` for every key whose value differs, those of the section `sweep` first.

    Args:
        but_wider: leave out changes that only make the sweep larger, see :func:`is_wider`.
    """
    paths = sorted({*before, *now}, key=lambda path: (not path.startswith("sweep."), path))
    pairs = [(path, before.get(path, ABSENT), now.get(path, ABSENT)) for path in paths]
    return [
        f"{path}: {_short(old)} → {_short(new)}"
        for path, old, new in pairs
        if old != new and not (but_wider and is_wider(path, old, new))
    ]


def is_wider(path: str, old: Any, new: Any) -> bool:
    """Return whether a change only makes the sweep larger: a larger range, more values or constraints.

    The trials so far then remain trials of the larger sweep.
    """
    is_space = path.startswith("sweep.space.") and ".when." not in path
    if path == "sweep.constraints" or (is_space and path.endswith(".values")):
        return {json.dumps(value) for value in old} < {json.dumps(value) for value in new}
    if is_space and path.endswith((".low", ".high")) and ABSENT not in (old, new):
        return bool(new < old if path.endswith(".low") else new > old)
    return False


def shorten(changes: Sequence[str]) -> str:
    """Return the first changes in one line, and how many more there are."""
    return first_few(changes, SHOWN_DIFFERENCES)


def _short(value: Any) -> str:
    text = value[:12] if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"


# ── the code ──────────────────────────────────────────────────────────────────────────────────────


@cache
def code_digests() -> dict[str, str]:
    """Return a digest of every source file of the package `harness`, by the file's path in the package."""
    root = Path(harness.__file__).parent
    files = sorted(root.rglob("*.py"))
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in files
    }


def check_code(study: optuna.Study, *, allow_changes: bool) -> None:
    """Refuse to continue with other code than the sweep began with; store the digests of a new sweep.

    Raises:
        SweepError: source files have changed, and sweep.allow_changed_code is false.
    """
    before, now = study.user_attrs.get(keys.CODE), code_digests()
    if before is not None and before != now and not allow_changes:
        changed = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
        raise SweepError(
            f"the code has changed since sweep {study.study_name!r} began "
            f"({first_few(changed, SHOWN_FILES)}): put it back, give a new sweep.name, or add "
            "sweep.allow_changed_code=true if the change cannot matter"
        )
    if before != now:
        study.set_user_attr(keys.CODE, now)
