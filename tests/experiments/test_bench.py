"""The command: whatever its rows do, it ends with a table and the files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.performance import bench
from experiments.performance.measurement import Outcome, Row, Skip
from experiments.performance.place import QUICK, Place
from experiments.performance.rows import ROWS, searches
from tests.experiments.test_report import _facts

ROOT = Path(__file__).parents[2]


def _measure_nothing(place: Place) -> Outcome:
    raise Skip("no such thing here")


def _break(place: Place) -> Outcome:
    raise RuntimeError("it broke")


def _row(key: str, measure: object = lambda _: Outcome((2.0,))) -> Row:
    return Row(key, f"the row {key}", 1.0, measure, 1)  # type: ignore[arg-type]


def _run(monkeypatch: pytest.MonkeyPatch, rows: tuple[Row, ...], *arguments: str) -> int:
    monkeypatch.setattr(bench, "ROWS", rows)
    monkeypatch.setattr(bench, "open_place", lambda folder, scale: Place(folder, scale, "cifar10", 9, 1))
    monkeypatch.setattr(bench, "describe", lambda *_: _facts())
    return bench.main(arguments)


def test_a_broken_row_does_not_take_the_others_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (_row("broken", _break), _row("absent", _measure_nothing), _row("good"))
    assert _run(monkeypatch, rows, "--output", str(tmp_path)) == 1
    written = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["verdict"], row["value"]) for row in written] == [
        ("failed", None),
        ("skipped", None),
        ("met", 2.0),
    ]
    assert "it broke" in written[0]["note"]
    assert "no such thing here" in (tmp_path / "REPORT.md").read_text()
    assert "the row good" in capsys.readouterr().out


def test_a_part_of_the_table_does_not_replace_the_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "HOME", tmp_path / "home")
    monkeypatch.setattr(bench, "TRIED", tmp_path / "tried")
    rows = (_row("one"), _row("two"))
    assert _run(monkeypatch, rows) == 0
    assert _run(monkeypatch, rows, "--rows", "two") == 0
    assert len(json.loads((tmp_path / "home" / "results.json").read_text())["rows"]) == 2
    assert len(json.loads((tmp_path / "tried" / "results.json").read_text())["rows"]) == 1


def test_the_whole_table_stays_below_15_minutes_by_its_own_account() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
    assert sum(row.budget_s for row in ROWS) <= 15 * 60


def test_without_the_feature_cache_its_rows_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(searches, "HAS_FEATURE_CACHE", False)
    place = Place(tmp_path, QUICK, "digits", 1000, 100)
    for measure in (searches.probe_trials_per_hour, searches.cached_probe):
        with pytest.raises(Skip, match="cache_features"):
            measure(place)


def test_the_speedrun_is_read_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(searches, "SPEEDRUN", tmp_path / "speedrun.json")
    with pytest.raises(Skip, match="make speedrun"):
        searches.speedrun("ratio")
    runs = [
        {"seed": seed, "test_accuracy": 0.94, "seconds": 500.0, "matmul_flops": 8e11, "ratio": 1.4}
        for seed in range(3)
    ]
    (tmp_path / "speedrun.json").write_text(json.dumps({"runs": runs}))
    assert searches.speedrun("test_accuracy", 100.0).values == pytest.approx((94.0,) * 3)
    assert "seeds 0, 1, 2" in searches.speedrun("ratio").note


@pytest.mark.slow
def test_it_really_measures(tmp_path: Path) -> None:
    rows = ("input_128", "augment", "recording", "wide_trials", "trial_start")
    command = [sys.executable, "-m", "experiments.performance.bench", "--quick", "--output", str(tmp_path)]
    done = subprocess.run([*command, "--rows", *rows], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "results.json").read_text())
    assert [row["key"] for row in written["rows"]] == list(rows)
    assert all(row["value"] > 0 for row in written["rows"])
    assert written["profile"]["operators"][0]["share"] > 0.01
    assert str(ROOT) not in (tmp_path / "REPORT.md").read_text() + (tmp_path / "results.json").read_text()
