"""A trial's process beats for it until it is about to end it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import optuna
import pytest

from harness.search.database.storage import open_storage
from harness.search.ownership.claims import Claims
from harness.search.ownership.lease import Lease
from harness.tracking.mlflow_tracker import MlflowTracker
from harness.tracking.spool import Spool

BEAT_S = 0.02


def test_a_beat_does_not_take_the_end_of_a_trial_for_its_loss(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/optuna.db")
    study = optuna.create_study(storage=storage)
    claim = Claims(study, storage).take(1)
    assert claim is not None
    left: list[str] = []
    lease = Lease(storage, claim.trial_id, claim.attempt, BEAT_S, leave=lambda: left.append("left"))
    with lease:
        time.sleep(3 * BEAT_S)
        lease.check_last()
        study.tell(claim.number, 0.5)
        time.sleep(10 * BEAT_S)
    assert left == []


@pytest.mark.parametrize("check", ["check", "check_last"])
def test_a_process_leaves_a_trial_that_another_has_taken(tmp_path: Path, check: str) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/optuna.db")
    study = optuna.create_study(storage=storage)
    claim = Claims(study, storage).take(1)
    assert claim is not None
    left: list[str] = []
    lease = Lease(storage, claim.trial_id, claim.attempt, 60.0, leave=lambda: left.append("left"))
    with lease:
        storage.set_trial_user_attr(claim.trial_id, "attempt", claim.attempt + 1)
        getattr(lease, check)()
    assert left == ["left"]


@pytest.mark.parametrize(
    "write",
    [
        lambda tracker: tracker.log_epoch(0, {"val/loss": 1.0}),
        lambda tracker: tracker.log_text("text", "note.txt"),
        lambda tracker: tracker.set_tags({"a": "b"}),
        lambda tracker: tracker.finish("FINISHED"),
    ],
)
def test_a_trial_that_was_lost_while_suspended_writes_neither_to_the_store_nor_to_the_spool(
    tmp_path: Path, write: Callable[[MlflowTracker], None]
) -> None:
    def leave() -> None:
        raise SystemExit

    client = MagicMock()
    tracker = MlflowTracker(client, "run", Spool(tmp_path / "spool", "run"))
    tracker.before_write = leave
    with pytest.raises(SystemExit):
        write(tracker)
    assert client.mock_calls == []
    assert list(tmp_path.iterdir()) == []
