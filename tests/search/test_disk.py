"""What a sweep keeps on disk, and what it does when there is no room."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.schema import TrackingConfig
from harness.config.sweep import SweepConfig
from harness.errors import SweepError, TrackingError
from harness.files import free_bytes
from harness.search.coordinator import checkpoint_cleanup as disk
from harness.search.coordinator.checkpoint_cleanup import (
    CheckpointCleanup,
    kept_first,
    spare_checkpoints,
)
from harness.search.report.leaderboard import leaderboard_csv
from harness.search.study.trials import ENDED, REMOVED_NOTE, TrialRow, ranked, was_removed
from harness.tracking.choice import choose
from tests.search.conftest import SmallSweep

STATES = ("waiting", "running", *ENDED)
UNSCORED = ENDED[2]  # it has an answer, but no score
SPACE = {"seed": {"type": "int", "low": 0, "high": 9}}
RESUME_STATE = ("last.ckpt", "last.previous.ckpt", "best.previous.ckpt", ".last.ckpt.7.partial")


def row(number: int, state: Any = "complete", score: float | None = None, **known: Any) -> TrialRow:
    absent = ["last_score", "best_epoch", "max_epochs", "seconds", "checkpoint", "reason"]
    values: dict[str, Any] = {"trial_id": number + 100, "run_id": str(number), **dict.fromkeys(absent)}
    values |= {"epochs_done": 0, "params": {}, "deaths": 0, **known}
    return TrialRow(number=number, state=state, score=score, **values)


def best_first(rows: Sequence[TrialRow]) -> list[TrialRow]:
    return ranked(rows, "maximize")


# ── whose checkpoints go ──────────────────────────────────────────────────────────────────────────

SCORED = [row(n, score=s) for n, s in enumerate([0.5, 0.9, 0.7, 0.9, 0.6])]  # best first: 1 3 2 4 0


@pytest.mark.parametrize(
    ("limit", "keep", "expected"),
    [
        (50, 1, []),
        (49, 1, [0]),
        (40, 1, [0]),
        (39, 1, [0, 4]),
        (0, 3, [0, 4]),  # the three best stay, whatever the limit
        (0, 1, [0, 4, 2, 3]),  # of two equals the earlier is better
        (0, 9, []),
    ],
)
def test_the_worst_go_first_and_no_more_than_must(limit: float, keep: int, expected: list[int]) -> None:
    assert spare_checkpoints(best_first(SCORED), dict.fromkeys(range(5), 10), limit, keep) == expected


def test_the_front_of_two_objectives_is_kept_first() -> None:
    """Near equals of its best are no answer of such a sweep, and its cheapest trial is one."""
    second = {"metric": "latency_ms", "direction": "minimize"}
    sweep = SweepConfig.model_validate({"space": SPACE, "second_objective": second})
    scores, latencies = [0.9, 0.89, 0.88, 0.7, 0.5, 0.6], [10, 11, 12, 5, 1, 9]
    rows = [row(n, score=s, costs={"latency_ms": ms}) for n, (s, ms) in enumerate(zip(scores, latencies))]  # noqa: B905

    assert [one.number for one in kept_first(rows, sweep)] == [0, 3, 4, 1, 2, 5]
    assert spare_checkpoints(kept_first(rows, sweep), dict.fromkeys(range(6), 10), 30, 1) == [5, 2, 1]


def test_what_has_no_score_goes_before_what_has_one() -> None:
    rows = [row(0, "failed"), row(1, "pruned", 0.9), row(2, "complete", 0.1), row(3, UNSCORED)]

    assert spare_checkpoints(best_first(rows), dict.fromkeys(range(4), 10), 0, 1) == [0, 3, 1]


def test_a_failure_takes_no_place_among_the_best() -> None:
    rows = [row(0, "complete", 0.1), row(1, "failed"), row(2, UNSCORED, 0.9)]

    assert spare_checkpoints(best_first(rows), dict.fromkeys(range(3), 10), 0, 2) == [1, 2]


def test_trials_that_run_are_counted_and_left_alone() -> None:
    rows = [row(0, score=0.1), row(1, score=0.2), row(2, "running", 0.05)]
    sizes = {0: 10, 1: 10, 2: 1000}

    assert spare_checkpoints(best_first(rows), sizes, 1015, 1) == [0]
    assert spare_checkpoints(best_first(rows), sizes, 0, 1) == [0]  # the limit cannot be kept


def test_trials_without_checkpoints_are_not_asked_for_any() -> None:
    assert spare_checkpoints(best_first(SCORED), {0: 0, 4: 10, 2: 10}, 15, 1) == [4]


trials = st.lists(
    st.tuples(st.sampled_from(STATES), st.none() | st.floats(0, 1), st.integers(0, 100)), max_size=30
)


@given(trials, st.integers(0, 1500), st.integers(1, 5))
def test_whatever_the_sweep(found: list[tuple[Any, float | None, int]], limit: int, keep: int) -> None:
    rows = [row(number, state, score) for number, (state, score, _) in enumerate(found)]
    sizes = {number: size for number, (*_, size) in enumerate(found)}
    ranking = best_first(rows)
    spare = spare_checkpoints(ranking, sizes, limit, keep)

    scored = [r.number for r in ranking if r.state in ("complete", "pruned")]
    assert not set(spare) & set(scored[:keep])
    assert all(rows[number].has_ended and sizes[number] for number in spare)
    assert len(set(spare)) == len(spare)
    left = {number: 0 if number in spare else size for number, size in sizes.items()}
    if spare:
        assert sum(left.values()) + sizes[spare[-1]] > limit  # the last one had to go, too
        assert spare_checkpoints(ranking, left, limit, keep) == []  # settled
    if sum(left.values()) > limit:
        removable = {r.number for r in rows if r.has_ended and sizes[r.number]} - set(scored[:keep])
        assert set(spare) == removable


# ── the keeper, on real files ─────────────────────────────────────────────────────────────────────


class Forgotten(list[int]):
    """In place of a run store: the numbers of the trials whose checkpoint it was told to forget."""

    def forget_checkpoint(self, run_id: str) -> None:
        self.append(int(run_id))


class Keeper(CheckpointCleanup):
    """The cleanup of a folder, with what its store was told."""

    def __init__(self, root: Path, copies: int = 1, **sweep: Any) -> None:
        self.forgotten = Forgotten()
        config = SweepConfig.model_validate({"space": SPACE, "min_free_gb": 0, **sweep})
        super().__init__(
            sweep=config,
            folder_of=lambda number: root / f"trial-{number:04d}",
            store=self.forgotten,  # type: ignore[arg-type]
            copies=copies,
        )

    def files(self, number: int) -> set[str]:
        return {file.name for file in self.folder_of(number).iterdir()}


def write_trial(root: Path, number: int, size: int = 1000) -> None:
    folder = root / f"trial-{number:04d}"
    folder.mkdir()
    for name in ("best.ckpt", *RESUME_STATE):
        (folder / name).write_bytes(b"x" * (size if name == "best.ckpt" else 10))
    for name in ("spec.json", "trial.log", "lock"):
        (folder / name).touch()


ALWAYS = {"spec.json", "trial.log", "lock"}
WHOLE = {"best.ckpt"}


@pytest.mark.parametrize("state", ["complete", "pruned", UNSCORED])
def test_what_a_trial_would_resume_from_goes_when_it_has_an_answer(tmp_path: Path, state: str) -> None:
    write_trial(tmp_path, 0)
    keeper = Keeper(tmp_path)
    assert keeper.tick([row(0, state, 0.5)]) is None

    assert keeper.files(0) == ALWAYS | WHOLE
    assert keeper.forgotten == []


@pytest.mark.parametrize("state", ["waiting", "running", "failed"])
def test_the_resume_state_of_others_stays(tmp_path: Path, state: str) -> None:
    write_trial(tmp_path, 0)
    keeper = Keeper(tmp_path)
    keeper.tick([row(0, state, 0.5)])

    assert keeper.files(0) == ALWAYS | WHOLE | set(RESUME_STATE)


def test_checkpoints_go_as_results_come_in(tmp_path: Path) -> None:
    for number in range(4):
        write_trial(tmp_path, number)
    keeper = Keeper(tmp_path, checkpoint_gb=2500e-9, keep_checkpoints=1)
    running = [row(n, "running") for n in range(4)]
    keeper.tick([row(0, score=0.5), *running[1:]])
    assert keeper.forgotten == []  # only one, the best, has ended
    keeper.tick([row(0, score=0.5), row(1, score=0.9), *running[2:]])
    assert keeper.forgotten == [0]
    keeper.tick([row(0, score=0.5), row(1, score=0.9), row(2, "failed"), row(3, "pruned", 0.7)])

    assert keeper.forgotten == [0, 2]  # then 2,000 bytes are left
    assert keeper.files(0) == keeper.files(2) == ALWAYS | {REMOVED_NOTE}
    assert keeper.files(1) == keeper.files(3) == ALWAYS | WHOLE
    assert was_removed(tmp_path / "trial-0000" / "best.ckpt")
    assert not was_removed(tmp_path / "trial-0001" / "best.ckpt")
    assert "sweep.checkpoint_gb" in (tmp_path / "trial-0000" / REMOVED_NOTE).read_text()


def test_a_second_copy_is_counted(tmp_path: Path) -> None:
    for copies, expected in ((1, []), (2, [0])):
        root = tmp_path / str(copies)
        root.mkdir()
        write_trial(root, 0)
        write_trial(root, 1)
        keeper = Keeper(root, copies, checkpoint_gb=3000e-9, keep_checkpoints=1)
        keeper.tick([row(0, score=0.1), row(1, score=0.2)])
        assert keeper.forgotten == expected


def test_another_call_goes_on_where_one_was_killed(tmp_path: Path) -> None:
    write_trial(tmp_path, 0)
    write_trial(tmp_path, 1)
    rows = [row(0, score=0.1), row(1, score=0.2)]
    settings = {"checkpoint_gb": 0, "keep_checkpoints": 1}
    Keeper(tmp_path, **settings).tick(rows)
    (tmp_path / "trial-0000" / "best.ckpt").write_text("x")  # as if killed between the note and the removal
    assert not was_removed(tmp_path / "trial-0000" / "best.ckpt")
    keeper = Keeper(tmp_path, **settings)
    keeper.tick(rows)
    keeper.tick(rows)

    assert keeper.forgotten == [0]
    assert keeper.files(0) == ALWAYS | {REMOVED_NOTE}


def test_folders_of_other_machines_are_no_concern(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, checkpoint_gb=0)
    assert keeper.tick([row(n, score=0.1 * n) for n in range(5)]) is None
    assert keeper.forgotten == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_removed_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_trial(tmp_path, 0)

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert Keeper(tmp_path).tick([row(0, score=0.1)]) is None
    assert "Permission denied" in caplog.text


@pytest.mark.parametrize(("free", "is_short"), [(0.5e9, True), (2e9, False)])
def test_room_is_asked_for_while_there_is_something_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, is_short: bool
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: free)
    keeper = Keeper(tmp_path, min_free_gb=1, num_trials=2)

    assert (keeper.tick([row(0)]) is not None) == is_short
    assert keeper.tick([row(0), row(1)]) is None


def test_free_space_is_known_before_the_folder_exists(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "there" / "yet") > 0


# ── a sweep ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_sweep_keeps_its_best_and_says_what_it_removed(small_sweep: SmallSweep) -> None:
    small_sweep.behave(scores={"0": 0.1, "1": 0.9, "2": 0.5})
    result = small_sweep.run("sweep.checkpoint_gb=0", "sweep.keep_checkpoints=1")

    left = {n: sorted(file.name for file in small_sweep.trial_folder(n).glob("*.ckpt")) for n in range(3)}
    assert left == {0: [], 1: ["best.ckpt"], 2: []}
    table = list(
        csv.DictReader(
            io.StringIO(
                leaderboard_csv(result.rows, SweepConfig.model_validate({"space": SPACE}), result.verdict)
            )
        )
    )
    says = {int(line["trial"]): line["checkpoint"] for line in table}
    assert says[0] == says[2] == "checkpoint removed (sweep.checkpoint_gb)"
    assert Path(says[1]).is_file()
    tracking = TrackingConfig(dir=str(small_sweep.runs))
    with pytest.raises(TrackingError, match=r"trial-0000\): checkpoint removed \(sweep.checkpoint_gb\)"):
        choose(tracking, "trial-0000")


def test_a_full_disk_stops_a_sweep_before_it_starts(
    new_sweep: SmallSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 0.25e9)
    with pytest.raises(SweepError, match=r"only 0.25 GB are free .*sweep.min_free_gb=1.*free some space"):
        new_sweep.run()

    assert not new_sweep.trial_folder(0).exists()


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_a_sweep_which_goes_on_later(
    small_sweep: SmallSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_sweep.behave(slow=[1])

    def free(folder: Path) -> int:
        return 10**6 if (small_sweep.trial_folder(1) / "last.ckpt").is_file() else 10**12

    monkeypatch.setattr(disk, "free_bytes", free)
    result = small_sweep.run()
    assert (result.outcome, result.exit_code) == ("out_of_space", 0)
    assert [r.state for r in result.rows] == ["complete", "running"]
    assert (
        "the disk of runs is nearly full (sweep.min_free_gb): free some space: 1 of 3 trials have ended; "
        "trial 1 goes on after epoch 1"
    ) in small_sweep.output.getvalue()
    monkeypatch.undo()
    small_sweep.behave()
    assert [r.state for r in small_sweep.run().rows] == ["complete"] * 3
