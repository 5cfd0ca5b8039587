from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.config.compose import compose_sweep
from harness.config.schema import TrackingConfig
from harness.search.report.description import NUM_SHOWN, describe_in_markdown, describe_trial
from harness.search.report.findings import Finding
from harness.search.report.verdict import judge
from harness.search.study.trials import TrialRow
from harness.tracking import names
from harness.tracking.store import open_store
from tests.search.conftest import SmallSweep

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


def text_of(rows: list[TrialRow], **more: Any) -> str:
    return describe_in_markdown(PLAN, rows, judge(rows, PLAN.sweep), "harness sweep x", "abc", **more)


def test_the_description_begins_with_the_answer() -> None:
    rows = [row(0, score=0.5), row(1, score=0.75), row(2, "running", 0.9)]
    finding = Finding("edge", "it is at an edge", "harness sweep --extend")
    text = text_of(rows, findings=[finding], pictures=["history.png"], best_command="harness train y")
    first, *rest = text.splitlines()
    assert "trial 1" in first
    assert "0.7500" in first
    assert "2 of 30 trials have ended" in rest[1]
    assert "| 1 | complete | 0.7500 | 0.001 |" in rest
    assert any(line.startswith("- it is at an edge") for line in rest)
    for command in ("harness sweep --extend", "harness train y", "harness sweep x"):
        assert any(line.endswith(f": `{command}`") for line in rest), command
    assert any(line.startswith("- optim.lr:") for line in rest)
    assert rest[-1] == "![history.png](get-artifact?path=history.png&run_uuid=abc)"


def test_a_sweep_without_a_score_has_no_answer() -> None:
    text = text_of([row(0, "infeasible", None)])
    assert "no answer" in text.splitlines()[0]
    assert "1 infeasible" in text


def test_trials_beyond_the_table_are_counted_and_ties_are_marked() -> None:
    rows = [row(number, score=0.9) for number in range(NUM_SHOWN + 3)]
    rows += [replace(row(50 + n, score=0.9 + n / 1000), replicate_of=0, seed=n) for n in range(3)]
    text = text_of(rows)
    assert "and 3 more" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == NUM_SHOWN + 2
    assert "0.9010 (3)" in table[2]
    assert sum("≈0.9000" in line for line in table) == NUM_SHOWN - 1


def test_names_cannot_break_the_page() -> None:
    hostile = replace(row(0), params={"a|b": "<script>x</script>|`y`\nz"})
    for text in (text_of([hostile]), describe_trial(hostile, PLAN, "my <b>sweep</b>", None)):
        assert "<" not in text
        assert "a\\|b" in text
        assert "&lt;script&gt;x&lt;/script&gt;\\|'y' z" in text


def test_a_trials_page_says_what_it_is_and_how_to_train_it_again() -> None:
    text = describe_trial(row(3, score=0.75), PLAN, "mine", "harness train optim.lr=0.001")
    assert text.startswith("**val/accuracy 0.7500 in epoch 1 of 1**: trial 3 of sweep mine, complete")
    assert "| optim.lr | 0.001 |" in text
    assert text.endswith("Trained again: `harness train optim.lr=0.001`")
    failed = describe_trial(replace(row(4, "failed", None), reason="no | memory"), PLAN, "mine", None)
    assert "**no score**" in failed
    assert "Why: no \\| memory" in failed
    again = describe_trial(replace(row(5), replicate_of=3, seed=7), PLAN, "mine", None)
    assert "trial 3 of sweep mine again, with seed 7" in again


def test_every_run_of_a_sweep_has_its_text_in_mlflow(small_sweep: SmallSweep) -> None:
    result = small_sweep.run("sweep.num_trials=2")
    client = open_store(TrackingConfig(dir=str(small_sweep.runs))).client
    notes = [client.get_run(str(one.run_id)).data.tags[names.NOTE] for one in result.rows]
    parent = client.get_run(str(result.parent_run_id)).data.tags[names.NOTE]
    assert [f"trial {number} of sweep small, complete" in note for number, note in enumerate(notes)] == [
        True
    ] * 2
    assert all("Trained again: `harness train --config-dir" in note for note in notes)
    assert "What limits this answer" in parent
