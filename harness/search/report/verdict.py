"""What a sweep has found: its best configuration, by how much, and which trials are within noise of it.

The reports call `judge`. It reads only the trials, so that each report says the same. The statistics are in
`harness/analysis/seeds.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import optuna

from harness.analysis.seeds import (
    HALF_A_POINT,
    MOST_SEEDS,
    Difference,
    Estimate,
    compare_groups,
    estimate,
    is_within_one,
    noise_of,
    p_text,
    seeds_needed,
)
from harness.config.sweep import SweepConfig
from harness.search.report.optimism import stored_optimism
from harness.search.report.progress import format_score, short_params
from harness.search.study.trials import TrialRow, best_row, fresh_scores, searched


def judge_study(study: optuna.Study, rows: Sequence[TrialRow], sweep: SweepConfig) -> Verdict:
    """Return what the trials show, with the optimism of the best score if that was estimated."""
    verdict, optimism = judge(rows, sweep), stored_optimism(study, rows)
    return verdict if optimism is None else replace(verdict, notes=(*verdict.notes, str(optimism)))


@dataclass(frozen=True)
class Verdict:
    """The answer of a sweep, as far as its trials give one."""

    sentence: str
    best: TrialRow | None
    notes: tuple[str, ...] = ()  # what else the replicates show, a line each
    replicates: Mapping[int, Estimate] = field(default_factory=dict)  # by the number of the replicated trial
    noise: float | None = None  # standard deviation of a run's score over seeds, pooled over the replicates
    margin: float | None = None  # how far a single run may fall behind the best mean by its seed alone
    tied: frozenset[int] = frozenset()  # numbers of the trials that noise does not tell from the best one


def judge(rows: Sequence[TrialRow], sweep: SweepConfig) -> Verdict:
    """Return what the trials so far show.

    A replicated trial is tied with the best one if their replicates do not differ by more than seeds
    explain (`compare_groups`). A trial without replicates is tied if its score lies above the lower end of
    Student's prediction interval, which holds the score of one further run of the best configuration with a
    probability of 95 %.
    """
    best = best_row(rows, sweep.direction)
    if best is None:
        return Verdict("no trial is complete, so there is no answer", None)
    minimizes = sweep.direction == "minimize"
    fresh = {number: scores for number, scores in fresh_scores(rows).items() if len(scores) > 1}
    if best.number not in fresh:
        return Verdict(_single_run(rows, sweep, best), best, _plain_lines(rows, best))
    is_share = is_within_one(sweep.metric, minimizes=minimizes)
    estimates = {number: estimate(list(of.values()), is_share=is_share) for number, of in fresh.items()}
    noise, degrees = noise_of(list(estimates.values()))
    margin = _margin(noise, degrees, estimates[best.number].n)
    pairs = compare_groups({_name(number): fresh[number] for number in fresh}, minimizes=minimizes)
    rivals = {_other(pair, best): pair for pair in pairs if _name(best.number) in (pair.first, pair.second)}
    near = {
        row.number
        for row in searched(rows)
        if row.state == "complete"
        and row.number not in fresh
        and row.score is not None
        and margin is not None
        and _behind(estimates[best.number].mean, row.score, minimizes) <= margin
    }
    untold = {number for number in fresh if (rival := rivals.get(_name(number))) and not rival.is_found}
    return Verdict(
        sentence=_replicated(sweep, best, estimates, rivals),
        best=best,
        notes=(
            *_plain_lines(rows, best),
            *_fresh_lines(rows, estimates, sweep.metric),
            *_near_lines(near, margin),
        ),
        replicates=estimates,
        noise=noise,
        margin=margin,
        tied=frozenset(untold | near),
    )


def _single_run(rows: Sequence[TrialRow], sweep: SweepConfig, best: TrialRow) -> str:
    """Return the sentence for a best trial without two replicates: nothing says how much of it is luck."""
    complete = sum(row.state == "complete" for row in searched(rows))
    runs = "the only complete run" if complete == 1 else f"the best of {complete} single runs"
    found = f"trial {best.number} ({_settings(best)}), {sweep.metric} {format_score(best.score)}, {runs}"
    if len(fresh_scores(rows).get(best.number, {})) == 1:
        return f"{found}; one fresh seed gives no interval: raise sweep.replicate.seeds to 3 or more"
    return f"{found}: only fresh seeds can tell how much of that is luck (harness replicate)"


def _replicated(
    sweep: SweepConfig, best: TrialRow, estimates: Mapping[int, Estimate], rivals: Mapping[str, Difference]
) -> str:
    """Return the sentence for a best trial with replicates: its mean, and its lead over the second best."""
    found, minimizes = estimates[best.number], sweep.direction == "minimize"
    answer = (
        f"{_settings(best)} (trial {best.number}): {sweep.metric} {found.mean:.4f} over {found.n} fresh seeds"
    )
    if found.low is None or found.high is None:
        answer += " (all equal, which gives no interval)"
    else:
        answer += f" (95 % interval {found.low:.4f} to {found.high:.4f})"
    others = {number: _behind(found.mean, of.mean, minimizes) for number, of in estimates.items()}
    others.pop(best.number)
    if not others:
        return answer
    second = min(others, key=lambda number: (others[number], number))
    lead = f"{answer}, {others[second]:.4f} better than trial {second}"
    pair = rivals[_name(second)]
    if pair.low is None or pair.high is None or pair.p_value is None:
        return f"{lead} with every seed, which allows no test"
    lead += f" ({pair.low:.4f} to {pair.high:.4f})"
    if pair.is_found:
        return f"{lead}: more than seeds explain (p = {p_text(pair.corrected)})"
    # Half a point is a unit of metrics within [0, 1]; a loss has none.
    smallest = HALF_A_POINT if is_within_one(sweep.metric, minimizes=minimizes) else 0.0
    wanted = max(smallest, abs(pair.mean))
    needed = seeds_needed(pair.deviation or 0.0, wanted, is_paired=pair.shared > 0)
    seeds = f"more than {MOST_SEEDS:,}" if needed is None else f"about {needed}"
    return (
        f"{lead}: no difference that {found.n} seeds can show; {seeds} would be needed to find {wanted:.4f}"
    )


def _plain_lines(rows: Sequence[TrialRow], best: TrialRow) -> tuple[str, ...]:
    """Return the best trial's accuracy without test-time augmentation, in a line, where its score has it."""
    if best.plain_accuracy is None:
        return ()
    line = f"without test-time augmentation, trial {best.number} has val/accuracy {best.plain_accuracy:.4f}"
    replicates = [row for row in rows if row.replicate_of == best.number and row.state == "complete"]
    again = [row.plain_accuracy for row in replicates if row.plain_accuracy is not None]
    return (f"{line}, its replicates {fmean(again):.4f} (n = {len(again)})" if again else line,)


def _fresh_lines(rows: Sequence[TrialRow], estimates: Mapping[int, Estimate], metric: str) -> list[str]:
    scores = {row.number: row.score for row in rows}
    return [
        f"trial {number} again with fresh seeds: {metric} {of_seeds}; the trial itself had "
        f"{format_score(scores[number])}"
        for number, of_seeds in estimates.items()
    ]


def _near_lines(near: set[int], margin: float | None) -> list[str]:
    if margin is None:
        return []
    change = f"what a seed changes ({margin:.4f}, 95 % prediction interval of a single run)"
    if not near:
        return [f"no trial without replicates comes within {change}"]
    trials = f"trial{'s' * (len(near) > 1)} {', '.join(map(str, sorted(near)))}"
    return [f"{trials} {'are' if len(near) > 1 else 'is'} within {change}"]


def _margin(noise: float | None, degrees: int, n: int) -> float | None:
    """Return how far below the mean of n runs a further run may lie: Student's 95 % prediction interval."""
    if noise is None:
        return None
    from scipy import stats

    return float(stats.t.ppf(0.975, degrees)) * noise * math.sqrt(1 + 1 / n)


def _behind(best: float, score: float, minimizes: bool) -> float:
    """Return by how much a score is worse than the best mean; negative: it is better."""
    return score - best if minimizes else best - score


def _settings(row: TrialRow) -> str:
    return short_params(row.params) or "the configuration"


def _name(number: int) -> str:
    return f"trial {number}"


def _other(pair: Difference, best: TrialRow) -> str:
    return pair.second if pair.first == _name(best.number) else pair.first
