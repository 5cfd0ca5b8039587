from __future__ import annotations

from typing import Any

from harness.config.compose import compose_sweep
from harness.search.report.description import NUM_SHOWN, describe_in_markdown
from harness.search.study.trials import TrialRow

PLAN = compose_sweep(["data=digits", "model=lenet", "finetune=full", "augment=none", "sweep.num_trials=30"])


def row(number: int, state: Any = "complete", score: float | None = 0.5) -> TrialRow:
    return TrialRow(
        number=number,
        trial_id=number,
        state=state,
        score=score,
        last_score=score,
        best_epoch=0,
        epochs_done=1,
        max_epochs=1,
        params={"optim.lr": 0.001},
        seconds=1.0,
        run_id="r",
        checkpoint=None,
        reason=None,
        deaths=0,
    )


def test_the_description_begins_with_the_answer() -> None:
    rows = [row(0, score=0.5), row(1, score=0.75), row(2, "running", 0.9)]
    first, *rest = describe_in_markdown(PLAN, rows, "harness sweep x", "abc").splitlines()
    assert "2 of 30 trials have ended" in first
    assert "trial 1 with **0.7500**" in first
    assert "| 1 | complete | 0.7500 | 0.001 |" in rest
    assert any("run_uuid=abc" in line for line in rest)
    assert "To go on: `harness sweep x`" in rest
    assert any(line.startswith("- `optim.lr`:") for line in rest)


def test_a_sweep_without_a_score_has_no_best() -> None:
    text = describe_in_markdown(PLAN, [row(0, "infeasible", None)], "c", "abc")
    assert "no best" in text.splitlines()[0]
    assert "the best is" not in text


def test_trials_beyond_the_table_are_counted() -> None:
    text = describe_in_markdown(PLAN, [row(number) for number in range(NUM_SHOWN + 3)], "c", "abc")
    assert "and 3 more" in text
    assert sum(line.startswith("| ") for line in text.splitlines()) == NUM_SHOWN + 2
