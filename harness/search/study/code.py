"""Which code a sweep's trials were run with: an answer must not come from two programs unnoticed."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import optuna

import harness
from harness.errors import SweepError
from harness.search.study import keys

SHOWN_FILES = 3


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
