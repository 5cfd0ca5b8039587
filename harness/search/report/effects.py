"""Judges, from a sweep's complete trials, which searched settings mattered; `audit.py` names the others.

A trial's score depends on all its settings at once, and few trials share a value. So the test is one on
ranks, a setting is called without effect only if the data rule a noticeable one out, and with few trials the
answer is "unknown".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from harness.analysis.seeds import holm
from harness.config.space import Choice, Dimension
from harness.config.sweep import SweepConfig
from harness.search.study.trials import TrialRow, searched

ALPHA = 0.05
NOTICEABLE = 0.65  # a chance to be the better of two trials that would be noticed; 0.5 is no difference
POWER = 0.8
SMALLEST_GROUP = 3  # trials with (about) the same value
NUM_THIRDS = 3  # into which the values of a range are divided
FEW_VALUES = 5  # up to so many different whole numbers are compared one by one


@dataclass(frozen=True)
class Effect:
    """What a sweep's trials say about one setting.

    Args:
        verdict: `some`: it mattered; `none`: it made no noticeable difference; `unknown`: either may be.
        num_trials: complete trials that have a value of it.
        num_groups: groups of values that are compared.
        is_covered: every value of a choice, and every trial, is in one of these groups.
        p_value: of the Kruskal-Wallis test; 1 where nothing can be tested.
        interval: bounds of the chance that a trial of one group is better than one of another, over all
            pairs of groups, with 95 % for all pairs together.
    """

    path: str
    verdict: Literal["some", "none", "unknown"]
    num_trials: int
    num_groups: int
    is_covered: bool = True
    p_value: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)


def judge_effects(rows: Sequence[TrialRow], sweep: SweepConfig) -> list[Effect]:
    """Return the effect of every searched setting, in the order of the space.

    A setting mattered if the Kruskal-Wallis test over groups of its values gives p < 0.05, corrected by
    Holm's method over the settings. It made no difference if, for each pair of groups, the 95 % interval
    (Bonferroni over the pairs) of the chance that one beats the other lies between 35 and 65 %. The
    interval is Mann and Whitney's with the variance that holds without a difference. Trials that an adaptive
    sampler proposes are not independent; the interval does not know that.

    Settings that only some trials have are judged by those. Pruned trials are left out, as they saw fewer
    epochs; so are trials that repeat another's configuration under a new seed.
    """
    complete = [row for row in searched(rows) if row.state == "complete" and row.score is not None]
    found = [
        _effect(path, dimension, complete)
        for path, dimension in sweep.space.items()
        if path != "seed" and not (isinstance(dimension, Choice) and len(dimension.values) == 1)
    ]
    return _with_verdicts(found)


def _effect(path: str, dimension: Dimension, complete: Sequence[TrialRow]) -> Effect:
    from scipy import stats

    with_it = [row for row in complete if path in row.params]
    groups = _groups([row.params[path] for row in with_it], dimension)
    scores = [[with_it[index].score or 0.0 for index in members] for members in groups]
    is_covered = sum(map(len, groups)) == len(with_it)
    if isinstance(dimension, Choice):
        is_covered = is_covered and len(groups) == len(dimension.values)
    result = Effect(path, "unknown", len(with_it), len(groups), is_covered)
    if len(groups) < 2:
        return result
    if len({score for group in scores for score in group}) == 1:  # the test is not defined; nothing differs
        return replace(result, p_value=1.0, interval=_interval(scores))
    return replace(result, p_value=float(stats.kruskal(*scores).pvalue), interval=_interval(scores))


def _groups(values: Sequence[Any], dimension: Dimension) -> list[list[int]]:
    """Return the indices of trials with the same value, or in the same third of the values of a range."""
    by_value: dict[Any, list[int]] = {}
    for index, value in enumerate(values):
        by_value.setdefault(value, []).append(index)
    if isinstance(dimension, Choice) or len(by_value) <= FEW_VALUES:
        groups = list(by_value.values())
    else:
        order = sorted(range(len(values)), key=lambda index: values[index])
        groups = [[int(index) for index in part] for part in np.array_split(order, NUM_THIRDS)]
    return [members for members in groups if len(members) >= SMALLEST_GROUP]


def _interval(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the lowest and the highest bound of P(A is better than B), over all pairs of groups."""
    from scipy import stats

    pairs = list(itertools.combinations(groups, 2))
    z = stats.norm.ppf(1 - ALPHA / 2 / len(pairs))
    widest = 0.0
    for one, other in pairs:
        wins = stats.mannwhitneyu(one, other).statistic / (len(one) * len(other))  # ties count half
        error = math.sqrt((len(one) + len(other) + 1) / (12 * len(one) * len(other)))
        widest = max(widest, abs(float(wins) - 0.5) + float(z) * error)
    return max(0.0, 0.5 - widest), min(1.0, 0.5 + widest)


def _with_verdicts(effects: Sequence[Effect]) -> list[Effect]:
    """Return the effects with their verdicts; the p-values are corrected by Holm's method."""
    judged = []
    for effect, corrected in zip(effects, holm([effect.p_value for effect in effects]), strict=True):
        if corrected < ALPHA:
            judged.append(replace(effect, verdict="some"))
            continue
        is_none = effect.num_groups >= 2 and effect.is_covered and effect.interval[1] <= NOTICEABLE
        judged.append(replace(effect, verdict="none" if is_none else "unknown"))
    return judged


def trials_needed(num_groups: int) -> int | None:
    """Return how many trials with a setting can rule out that it matters; None: it has too many values.

    For groups of equal size without a difference in truth, and with a chance of 80 % for each pair of them.
    """
    from scipy import stats

    num_groups = max(2, num_groups)
    if num_groups > FEW_VALUES:
        return None
    z = float(stats.norm.ppf(1 - ALPHA / 2 / math.comb(num_groups, 2)))
    z += float(stats.norm.ppf((1 + POWER) / 2))
    half = NOTICEABLE - 0.5
    in_group = next(n for n in itertools.count(SMALLEST_GROUP) if z * math.sqrt((2 * n + 1) / 12) / n < half)
    return num_groups * in_group
