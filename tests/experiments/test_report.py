"""What people and programs read after a benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.performance import report
from experiments.performance.measurement import Outcome, Row, Side, judge, without_number


def _row(title: str, target: float, unit: str = "×", *, at_least: bool = True) -> Row:
    return Row(title, title, target, lambda _: Outcome(()), 1, unit=unit, at_least=at_least)


RESULTS = (
    judge(
        _row("input pipeline", 10),
        Outcome((12.0, 11.0, 14.0), (Side("ours", (24_000.0,), "images/s"),), "crop and flip"),
        seconds=3.0,
    ),
    judge(_row("start of a trial", 0.5, "s", at_least=False), Outcome((2.0, 1.0, 4.0)), seconds=3.0),
    without_number(_row("cached", 50), "skipped", "there is no cache"),
)


def _facts(**changed: Any) -> dict[str, Any]:
    return {
        "command": "make bench",
        "date": "2026-11-22 01:35 UTC",
        "data": {"name": "cifar10", "train": 45_000, "val": 5_000},
        "speed_model": "wide_cnn",
        "sizes": {"speed_batch": 500},
        "is_quick": False,
        "load_before": 0.1,
        "seconds": 600.0,
        "hardware": {
            "cpu": "A CPU",
            "cores": 2,
            "memory_gib": 23.0,
            "system": "Linux x86_64",
            "auto": {"precision": "fp32"},
            "matmul_flops": {"fp32": 168e9, "bf16": 20e9},
        },
        "versions": {"torch": "2.14.1"},
        "commit": "abc",
        "profile": {
            "step_seconds": 1.5,
            "operators": [{"name": "aten::convolution_backward", "share": 0.5, "calls": 2}],
        },
        **changed,
    }


def test_a_row_may_bring_a_table_of_its_own() -> None:
    outcome = Outcome((2.0,), table=(("what", "harness"), ("AugMix", "6,000")))
    text = report.render([judge(_row("augmentation", 1), outcome, seconds=1.0)], _facts())
    assert "\n\n| what | harness |\n| --- | --- |\n| AugMix | 6,000 |\n" in text


def test_every_row_is_in_the_table_with_target_spread_and_verdict() -> None:
    text = report.render(RESULTS, _facts())
    assert "| input pipeline | ≥ 10× | 12× | 11 – 14 | 3 | met |" in text
    assert "| start of a trial | ≤ 0.5 s | 2 s | 1 – 4 | 3 | falls short |" in text
    assert "| cached | ≥ 50× | – | – | – | skipped |" in text


def test_the_report_says_how_it_was_measured() -> None:
    text = report.render(RESULTS, _facts())
    for said in (
        "`make bench`",
        "2026-11-22",
        "10.0 minutes",
        "A CPU, 2 cores",
        "torch 2.14.1",
        "168 GFLOP/s",
    ):
        assert said in text
    assert "- ours: 24,000 images/s\n- crop and flip." in text
    assert "- there is no cache." in text
    assert "| `aten::convolution_backward` | 50.0% | 2 |" in text
    assert "mean nothing" not in text


def test_a_quick_run_and_other_data_are_said() -> None:
    text = report.render(RESULTS, _facts(is_quick=True, data={"name": "digits", "train": 9, "val": 1}))
    assert "the numbers mean nothing" in text
    assert "Not CIFAR-10" in text


def test_the_files_hold_the_same_numbers(tmp_path: Path) -> None:
    report.write(tmp_path, RESULTS, _facts())
    rows = json.loads((tmp_path / report.RESULTS).read_text())["rows"]
    assert [(row["title"], row["value"], row["low"], row["high"]) for row in rows] == [
        ("input pipeline", 12, 11, 14),
        ("start of a trial", 2, 1, 4),
        ("cached", None, None, None),
    ]
    assert rows[0]["sides"] == [{"name": "ours", "values": [24_000], "unit": "images/s"}]
    assert report.PLOT in (tmp_path / report.REPORT).read_text()
    assert (tmp_path / report.PLOT).read_bytes().startswith(b"\x89PNG")


def test_the_plot_puts_what_is_met_right_of_the_line() -> None:
    axes = report.draw(RESULTS).axes[0]
    middles = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]  # type: ignore[index]
    assert sorted(middles) == [0.25, 1.2]
