from __future__ import annotations

import pytest

from experiments.evaluation_cost import __main__ as cost


@pytest.mark.slow
def test_the_costs_of_both_kinds_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "IMAGES", 50)
    monkeypatch.setattr(cost, "CASES", (("a small set", 3),))
    assert cost.main(["--repeats", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("n=2") == 4
    assert "50 images, 3 classes" in shown
