"""The statistics behind the table."""

from __future__ import annotations

import pytest

from experiments.performance.measurement import (
    Epoch,
    Outcome,
    Row,
    Timing,
    alternate,
    compare,
    judge,
    without_number,
)


def _row(target: float, *, at_least: bool = True) -> Row:
    return Row("key", "a title", target, lambda _: Outcome(()), 1, at_least=at_least)


def test_two_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    assert alternate(3, lambda: side("a"), lambda: side("b")) == [(1, 2), (3, 4), (5, 6)]
    assert order == ["a", "b"] * 3


def test_neighbours_are_compared() -> None:
    # The machine became three times slower after the first pair: the ratio is 2 all the same.
    outcome = compare([(60, 30), (20, 10), (22, 11)], ("ours", "theirs"), "images/s")
    assert outcome.values == (2, 2, 2)
    assert [(side.name, side.values) for side in outcome.sides] == [
        ("ours", (60, 20, 22)),
        ("theirs", (30, 10, 11)),
    ]


def test_of_seconds_fewer_are_better() -> None:
    assert compare([(2, 10)], ("ours", "theirs"), "s", less_is_better=True).values == (5,)


def test_the_median_is_judged_and_the_spread_is_kept() -> None:
    result = judge(_row(4), Outcome((9.0, 1.0, 4.0)), seconds=1.0)
    assert (result.value, result.low, result.high, result.repeats) == (4, 1, 9, 3)
    assert result.verdict == "met"
    assert judge(_row(4), Outcome((9.0, 1.0, 3.9)), 1.0).verdict == "falls short"


@pytest.mark.parametrize(("value", "verdict"), [(0.5, "met"), (0.51, "falls short")])
def test_a_limit_is_not_to_be_exceeded(value: float, verdict: str) -> None:
    assert judge(_row(0.5, at_least=False), Outcome((value,)), 1.0).verdict == verdict


def test_shares_of_a_target_mean_the_same_for_both_kinds() -> None:
    at_least, at_most = (judge(_row(4, at_least=kind), Outcome((8.0,)), 1.0) for kind in (True, False))
    assert at_least.share(8) == 2
    assert at_most.share(8) == 0.5


def test_a_row_without_a_number_says_why() -> None:
    result = without_number(_row(4), "skipped", "no such thing here")
    assert (result.value, result.verdict, result.note) == (None, "skipped", "no such thing here")


def test_only_the_epochs_are_scaled() -> None:
    # 7 s around two epochs; the first also started workers (2 s), which happens once however long it is.
    timing = Timing(total_s=7 + (3 + 1 + 2) + (3 + 1), epochs=(Epoch(5, 1), Epoch(3, 1)))
    assert timing.scaled(train=1, val=1, epochs=2) == timing.total_s
    assert timing.scaled(train=10, val=2, epochs=4) == pytest.approx(7 + 2 + 4 * (30 + 2))
