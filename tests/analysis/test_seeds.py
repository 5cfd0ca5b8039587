"""What seeds show: against SciPy, statsmodels and hand-worked cases, ordinary and degenerate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from harness.analysis.seeds import compare_groups, describe, estimate, explain_odds, holm, seeds_needed

A = {0: 0.95, 1: 0.955, 2: 0.948, 3: 0.951, 4: 0.953}
B = {0: 0.94, 1: 0.941, 2: 0.939, 3: 0.944, 4: 0.94}


def test_an_interval_is_students() -> None:
    scores = list(A.values())
    found = estimate(scores)
    half = stats.t.ppf(0.975, 4) * np.std(scores, ddof=1) / np.sqrt(5)
    assert (found.low, found.high) == pytest.approx((np.mean(scores) - half, np.mean(scores) + half))
    assert found.deviation == pytest.approx(np.std(scores, ddof=1))


@pytest.mark.parametrize(
    ("scores", "says"), [([0.9], "one run: no interval"), ([0.9, 0.9], "2 equal runs: no")]
)
def test_there_is_no_interval_where_seeds_showed_nothing(scores: list[float], says: str) -> None:
    found = estimate(scores)
    assert (found.low, found.high) == (None, None)
    assert says in str(found)


@pytest.mark.parametrize("scores", [[], [0.9, float("nan")], [float("inf")]])
def test_a_score_that_is_none_is_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        estimate(scores)


def test_shared_seeds_are_compared_in_pairs() -> None:
    (pair,) = compare_groups({"b": B, "a": A})
    expected = stats.ttest_rel(list(A.values()), list(B.values()))
    interval = expected.confidence_interval(0.95)
    assert (pair.first, pair.second, pair.shared) == ("a", "b", 5)
    assert pair.p_value == pytest.approx(expected.pvalue)
    assert (pair.low, pair.high) == pytest.approx((interval.low, interval.high))
    assert pair.better == 1.0
    said = describe(pair, "val/accuracy")
    assert "a is better than b by 0.0106" in said
    assert "P(A > B) = 100% of 5 shared seeds, 95 % interval 48% to 100%" in said


def test_only_the_seeds_that_both_have_are_paired() -> None:
    (pair,) = compare_groups({"a": A | {9: 0.5}, "b": B | {8: 0.99}})
    assert pair.shared == 5
    assert pair.p_value == pytest.approx(stats.ttest_rel(list(A.values()), list(B.values())).pvalue)


def test_without_shared_seeds_the_test_is_welchs() -> None:
    (pair,) = compare_groups({"a": A, "b": {seed + 10: score for seed, score in B.items()}})
    expected = stats.ttest_ind(list(A.values()), list(B.values()), equal_var=False)
    assert pair.shared == 0
    assert pair.p_value == pytest.approx(expected.pvalue)
    assert "unpaired runs" in describe(pair, "val/accuracy")


def test_a_lower_loss_is_the_better_one() -> None:
    (pair,) = compare_groups({"high": A, "low": B}, minimizes=True)
    assert (pair.first, pair.second) == ("low", "high")
    assert pair.mean > 0
    assert pair.better == 1.0


def test_p_values_are_corrected_over_all_pairs_by_holm() -> None:
    rng = np.random.default_rng(0)
    groups = {name: dict(enumerate(rng.normal(mean, 1, 5))) for name, mean in (("a", 0), ("b", 1), ("c", 4))}
    pairs = compare_groups(groups)
    expected = multipletests([pair.p_value for pair in pairs], method="holm")[1]
    assert [pair.corrected for pair in pairs] == pytest.approx(list(expected))


def test_the_correction_is_that_of_statsmodels_with_ties_too() -> None:
    rng = np.random.default_rng(1)
    rounded = [rng.random(count).round(1) ** 2 for count in (2, 9, 30)]  # with ties
    for p_values in ([0.03], [0.0, 1.0, 0.5, 0.5, 1e-300], *rounded):
        assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]), rel=1e-12)


def test_a_pair_that_cannot_be_tested_counts_for_no_correction() -> None:
    same = {seed: score - 0.01 for seed, score in A.items()}
    pairs = compare_groups({"a": A, "same": same, "b": B, "alone": {0: 0.9}})
    by_names = {(pair.first, pair.second): pair for pair in pairs}
    assert not any("alone" in names for names in by_names)
    constant = by_names["a", "same"]
    # Rounding aside, the differences are all alike: a t test would call its p value 0.
    assert constant.p_value is None or constant.p_value < 1e-6
    tested = [pair for pair in pairs if pair.p_value is not None]
    expected = multipletests([pair.p_value for pair in tested], method="holm")[1]
    assert [pair.corrected for pair in tested] == pytest.approx(list(expected))


def test_equal_differences_are_no_proof() -> None:
    (pair,) = compare_groups({"a": {0: 0.75, 1: 0.5}, "b": {0: 0.5, 1: 0.25}})
    assert pair.p_value is None
    assert not pair.is_found
    assert "no test is possible" in describe(pair, "val/accuracy")


def test_ties_count_half() -> None:
    (pair,) = compare_groups({"a": {0: 0.5, 1: 0.75}, "b": {0: 0.5, 1: 0.5}})
    assert pair.better == 0.75


def test_the_probability_that_a_beats_b_is_counted_on_shared_seeds_with_the_exact_interval() -> None:
    a = {seed: 0.5 + 0.1 * (seed % 2) for seed in range(8)}  # wins on the four odd seeds, loses on the others
    b = {seed: 0.55 + 0.001 * seed for seed in range(8)}
    (pair,) = compare_groups({"a": a | {9: 0.9}, "b": b | {10: 0.1}})
    exact = stats.binomtest(4, 8).proportion_ci(0.95, method="exact")
    assert pair.better == 0.5
    assert (pair.better_low, pair.better_high) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize("count", [5, 6])
def test_six_wins_in_six_show_more_than_even_odds_and_five_in_five_do_not(count: int) -> None:
    rng = np.random.default_rng(0)
    (pair,) = compare_groups(
        {name: dict(enumerate(rng.normal(mean, 0.01, count))) for name, mean in (("a", 1), ("b", 0))}
    )
    assert pair.better_low is not None
    assert (pair.better_low > 0.5) == (count == 6)
    said = explain_odds([pair])
    assert said is not None
    assert ("cannot exclude even odds" in said) == (count == 5)


def test_unpaired_runs_get_no_interval_for_the_probability() -> None:
    (pair,) = compare_groups({"a": A, "b": {seed + 10: score for seed, score in B.items()}})
    assert (pair.better, pair.better_low, pair.better_high) == (1.0, None, None)
    assert "no interval without shared seeds" in describe(pair, "val/accuracy")


def test_the_interval_of_a_share_is_students_on_the_scale_of_the_logit() -> None:
    scores = [0.9, 0.95, 0.97]
    found = estimate(scores, is_share=True)
    mean, error = np.mean(scores), np.std(scores, ddof=1) / np.sqrt(3)
    half = stats.t.ppf(0.975, 2) * error / (mean * (1 - mean))
    odds = mean / (1 - mean) * np.exp([-half, half])
    assert (found.low, found.high) == pytest.approx(tuple(odds / (1 + odds)))
    assert found.high is not None
    assert found.high < 1
    assert estimate(scores).high > 1  # type: ignore[operator]


def test_the_interval_of_a_loss_is_not_forced_into_bounds() -> None:
    assert estimate([0.5, 1.5, 2.5], is_share=True) == estimate([0.5, 1.5, 2.5])


@pytest.mark.parametrize(("deviation", "difference"), [(1.0, 1.0), (1.0, 0.3), (0.008, 0.005)])
def test_so_many_seeds_have_the_power_that_is_promised(deviation: float, difference: float) -> None:
    needed = seeds_needed(deviation, difference, is_paired=True)
    assert needed is not None
    power = [TTestPower().power(difference / deviation, n, 0.05) for n in (needed - 1, needed)]
    assert power[0] < 0.8 <= power[1]


def test_seeds_needed_at_the_edges() -> None:
    assert seeds_needed(0.0, 0.1, is_paired=True) in (2, 3)
    assert seeds_needed(1e-9, 0.1, is_paired=False) in (2, 3)
    assert seeds_needed(1.0, 0.0, is_paired=True) is None
    assert seeds_needed(1.0, 0.01, is_paired=True) is None


def test_what_seeds_do_not_show_is_said_with_the_seeds_that_would() -> None:
    close = {seed: score + 0.001 * (-1) ** seed for seed, score in A.items()}
    (pair,) = compare_groups({"a": A, "close": close})
    said = describe(pair, "val/accuracy", worthwhile=0.005)
    assert said.startswith("these runs show no difference between close and a: close leads")
    assert "seeds of each would find a difference of 0.0050" in said
