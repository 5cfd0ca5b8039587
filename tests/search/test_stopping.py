"""When a sweep has its answer before its budget is spent."""

from __future__ import annotations

from typing import Any

import pytest

from harness.config.sweep import SweepConfig
from harness.search.coordinator.completion import reason_to_stop
from harness.search.study.trials import TrialRow
from tests.search.conftest import SmallSweep
from tests.search.test_progress import row

SPACE = {"seed": {"type": "int", "low": 0, "high": 9}}
LOSS = {"metric": "val/loss", "direction": "minimize"}


def rows_of(*ended: tuple[str, float | None]) -> list[TrialRow]:
    return [row(number, state, score=score) for number, (state, score) in enumerate(ended)]


@pytest.mark.parametrize(
    ("rules", "ended", "reason"),
    [
        ({"target": 0.9}, [("complete", 0.5), ("complete", 0.9)], "trial 1 has reached sweep.target=0.9"),
        ({"target": 0.9}, [("complete", 0.89), ("pruned", 0.95), ("running", 0.95)], None),
        ({"target": 0.2, **LOSS}, [("complete", 0.3), ("complete", 0.1)], "trial 1 has reached"),
        ({"target": 0.2, **LOSS}, [("complete", 0.3)], None),
        (
            {"patience_trials": 2},
            [("complete", 0.5), ("pruned", 0.9), ("complete", 0.5)],
            "2 trials have ended",
        ),
        ({"patience_trials": 2}, [("complete", 0.5), ("complete", 0.6), ("failed", None)], None),
        ({"patience_trials": 1}, [("complete", 0.5), ("running", 0.1)], None),
        ({"patience_trials": 1, "target": 0.1}, [("failed", None)] * 5, None),
        ({}, [("complete", 1.0)] * 50, None),
    ],
)
def test_rules(rules: dict[str, Any], ended: list[tuple[str, float | None]], reason: str | None) -> None:
    found = reason_to_stop(rows_of(*ended), SweepConfig.model_validate({"space": SPACE, **rules}))

    assert (found is None) == (reason is None)
    assert reason is None or (found is not None and found.startswith(reason))


def test_a_sweep_stops_at_its_target_and_a_repeated_command_trains_nothing(small_sweep: SmallSweep) -> None:
    small_sweep.behave(scores={"0": 0.5, "1": 0.95, "2": 0.6})
    ending = ["sweep.num_trials=9", "sweep.target=0.9"]
    for _ in range(2):
        result = small_sweep.run(*ending)
        assert [row.state for row in result.rows] == ["complete"] * 2
        assert result.outcome == "complete"
    text = small_sweep.output.getvalue()
    changed = small_sweep.run("sweep.num_trials=9", "sweep.patience_trials=1")

    assert text.count("no more trials: trial 1 has reached sweep.target=0.9") == 2
    assert len(changed.rows) == 3
