"""Turns a study's recorded runs into REPORT.md, results.json and results.png.

`__main__.py` calls `gather` and `write` after each training. What has not run is said so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

import harness
from experiments.studies import int8
from experiments.studies.plan import Cell, Experiment, Study, StudyArm
from experiments.trainings import (
    NOT_YET,
    PFLOP,
    WALL_CLOCK,
    Arm,
    Trained,
    describe,
    describe_added,
    describe_difference,
    describe_machine,
    differences,
    estimate_of,
    finished,
    last_of_each,
    mean_of,
    minutes_of,
    scores_of,
)
from harness.analysis.figures import OKABE_ITO
from harness.analysis.layout import markdown_table
from harness.analysis.seeds import Estimate, compare_groups

REPORT, RESULTS, PICTURE = "REPORT.md", "results.json", "results.png"
MARKERS = "os^Dv<>Pp"
Cost = Callable[[Sequence[Trained]], float | None]
DPI = 110
WIDE = 20  # times; costs that differ more have a logarithmic axis
EQUAL = 1.02  # times; costs that differ less are not drawn


@dataclass(frozen=True)
class Found:
    """What is recorded of an arm at a level."""

    level: str
    arm: str
    trained: tuple[Trained, ...]


def gather(experiment: Experiment) -> list[Found]:
    """Return what is recorded of a study, in the order of its plan; combine what is to be combined."""
    return [Found(cell.level, cell.arm.name, _of_cell(experiment, cell)) for cell in experiment.cells()]


def _of_cell(experiment: Experiment, cell: Cell) -> tuple[Trained, ...]:
    """Return a score for each seed whose members have all been trained."""
    members, found = experiment.study.members, []
    runs = {one.seed: one for one in finished(experiment.settled(cell), _metrics(experiment))}
    for seed in experiment.seeds:
        group = [runs.get(seed * members + number) for number in range(members)]
        of_seed = [one for one in group if one is not None]
        if len(of_seed) == members:
            found.append(as_one(experiment.study.metric, seed, of_seed, cell.arm))
    return tuple(found)


def as_one(metric: str, seed: int, members: Sequence[Trained], arm: StudyArm) -> Trained:
    """Return the members' mean, or what they are as one model, at the cost of all."""
    if len(members) == 1:
        return members[0]
    names = set(members[0].metrics)
    means = {name: mean for name in names if (mean := mean_of(members, name)) is not None}
    minutes = minutes_of(members)
    if arm.combine is None:
        return Trained(seed, members[0].run_id, means, minutes)
    one = harness.ensemble(*(member.run_id for member in members), soup=arm.soup, greedy=arm.greedy)
    costs = {name: value * len(members) for name, value in means.items() if name == PFLOP}
    spent = None if minutes is None else minutes * len(members)
    return Trained(seed, one.run_id, {metric: one.metrics[metric], **costs}, spent)


def _metrics(experiment: Experiment) -> tuple[str, ...]:
    return (experiment.study.metric, PFLOP, *(int8.METRICS if experiment.study.int8 else ()))


def write(experiment: Experiment, folder: Path) -> list[Found]:
    """Write the three files; return what they show."""
    found, cells = gather(experiment), experiment.cells()
    machine, data = describe_machine([one for cell in cells for one in experiment.settled(cell)])
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "study": experiment.name,
        "data": data,
        "machine": machine,
        "added": experiment.added,
        "metric": experiment.study.metric,
        "found": [asdict(one) for one in found],
    }
    (folder / RESULTS).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    text = render(experiment, found, machine, data)
    if any(one.trained for one in found):
        draw(experiment, found).savefig(folder / PICTURE, dpi=DPI)
        text += f"\n![each arm's score, and the score against what training cost]({PICTURE})\n"
    (folder / REPORT).write_text(text, "utf-8")
    print(f"report: {folder / REPORT}", flush=True)
    return found


# ── in words ──────────────────────────────────────────────────────────────────────────────────────


def render(experiment: Experiment, found: Sequence[Found], machine: str, data: str) -> str:
    """Return a study's report, in Markdown."""
    study = experiment.study
    added = f" {describe_added(experiment.added, study.settings)}" if experiment.added else ""
    shared = " ".join(last_of_each([*study.base, *experiment.added]))
    parts = [
        f"# {study.title}",
        f"**Question.** {study.question}",
        f"Written by `make experiment NAME={experiment.name}` from recorded runs; repeat it to go on. "
        "The plan is [`study.yaml`](study.yaml), all figures are in [`results.json`](results.json)." + added,
        f"All trainings: `{shared}`. The score is `{study.metric}` after the last epoch, on "
        "images of the training split that train nothing; the test split is not read.",
        *study.notes,
    ]
    if study.members > 1:
        parts.append(
            f"Each seed stands for {study.members} runs: an arm's score is their mean; an arm that combines "
            "makes one model of them, and its minutes and PFLOP are those of all its members."
        )
    if machine:
        parts.append(f"Data: {data}. Machine: {machine}. {WALL_CLOCK}")
    for level in dict.fromkeys(one.level for one in found):
        of_level = [one for one in found if one.level == level]
        if level:
            parts.append(f"## {study.factor}: {level}")
        parts += [_table(study.metric, of_level), conclusion(study.metric, of_level)]
    if study.int8:
        parts += ["## With 8 bits", *_quantised(found)]
    parts += ["## The arms", _arms(experiment)]
    return "\n\n".join(parts) + "\n"


def _table(metric: str, found: Sequence[Found]) -> str:
    first, *others = (scores_of(one.trained, metric) for one in found)
    pairs = differences([(arm, first) for arm in others])
    rows = [
        [
            one.arm,
            describe(estimate_of(one.trained, metric)),
            "–" if number == 0 else describe_difference(pairs[number - 1], has_run=bool(one.trained)),
            _number(minutes_of(one.trained)),
            _number(mean_of(one.trained, PFLOP)),
        ]
        for number, one in enumerate(found)
    ]
    head = ["arm", metric, f"minus {found[0].arm}, points", "minutes", "PFLOP"]
    return markdown_table(head, rows).rstrip("\n")


def conclusion(metric: str, found: Sequence[Found]) -> str:
    """Return a sentence: which arm has the best mean, and which cannot be told from it."""
    scored = [one for one in found if len(one.trained) > 1]
    if len(scored) < 2:
        return f"Which arm is better: {NOT_YET} with two seeds or more."
    means = {one.arm: sum(scores_of(one.trained, metric).values()) / len(one.trained) for one in scored}
    best = max(means, key=lambda arm: means[arm])
    pairs = compare_groups({one.arm: scores_of(one.trained, metric) for one in scored})
    tied = [
        next(name for name in (pair.first, pair.second) if name != best)
        for pair in pairs
        if best in (pair.first, pair.second) and not pair.is_found
    ]
    if not tied:
        return f"**Best: {best}**, and better than each other arm (paired t tests, Holm over all pairs, 5 %)."
    return (
        f"**Best mean: {best}**; not told apart from it by {min(len(one.trained) for one in scored)} seeds "
        f"(paired t tests, Holm over all pairs, 5 %): {'; '.join(tied)}."
    )


def _quantised(found: Sequence[Found]) -> list[str]:
    pairs = [
        (scores_of(one.trained, int8.INT8_ACCURACY), scores_of(one.trained, int8.FP32_ACCURACY))
        for one in found
    ]
    rows = [
        [
            one.arm,
            describe(estimate_of(one.trained, int8.FP32_ACCURACY)),
            describe_difference(lost, has_run=bool(one.trained)),
            _percent(mean_of(one.trained, int8.AGREEMENT)),
            f"{_number(mean_of(one.trained, int8.FP32_MEGABYTES))} → "
            + _number(mean_of(one.trained, int8.INT8_MEGABYTES)),
            *(_number(mean_of(one.trained, metric)) for metric in int8.SPEEDUPS.values()),
        ]
        for one, lost in zip(found, differences(pairs), strict=True)
    ]
    head = ["arm", "accuracy, fp32", "int8 minus fp32, points", "same class", "MB"]
    head += [f"fp32's time ÷ int8's, batches of {batch}" for batch in int8.SPEEDUPS]
    return [
        "Each run was exported with `--int8`: both models ran on all validation images. Times "
        f"are taken in turn, on as many threads as ONNX Runtime takes: of a run the median of {int8.PAIRS} "
        "ratios, in the table the mean over the seeds.",
        markdown_table(head, rows).rstrip("\n"),
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def _arms(experiment: Experiment) -> str:
    study = experiment.study
    arms = [[arm.name, _settings(arm), arm.why] for arm in study.arms]
    levels = [[level.name, f"`{' '.join(level.set)}`", level.why] for level in study.levels]
    text = markdown_table(["arm", "settings", "why"], arms)
    if levels:
        text += "\n" + markdown_table([study.factor, "settings", ""], levels)
    return text.rstrip("\n")


def _settings(arm: StudyArm) -> str:
    if arm.combine is not None:
        options = "".join(f" --{name}" for name in ("soup", "greedy") if getattr(arm, name))
        return f"`harness ensemble{options}` of {arm.combine}"
    return f"`{' '.join(arm.set)}`" if arm.set else ""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


# ── as a picture ──────────────────────────────────────────────────────────────────────────────────


def draw(experiment: Experiment, found: Sequence[Found]) -> Figure:
    """Draw each arm's mean score, with its interval: level by level, then against what training cost.

    A colour is an arm, a mark a level. Long intervals are cut off. A cost that all arms share is left out.
    """
    costs: dict[str, Cost] = {"minutes of training": minutes_of, "PFLOP of training": _pflop_of}
    differing = {
        label: cost for label, cost in costs.items() if _differs([cost(one.trained) for one in found])
    }
    tall = 0.9 + 0.3 * len(experiment.study.arms)
    heights = [tall, 3.4] if differing else [tall]
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    above, *below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_arms(above, experiment.study, found)
    if below:
        _draw_costs(below[0], experiment.study, found, differing)
    for axes in figure.axes:
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def _draw_arms(figure: SubFigure, study: Study, found: Sequence[Found]) -> None:
    arms, levels = [arm.name for arm in study.arms], study.levels or (Arm(name=""),)
    row = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
    for axes, level in zip(row, levels, strict=True):
        of_level = [one for one in found if one.level == level.name]
        for one in of_level:
            if (score := estimate_of(one.trained, study.metric)) is not None:
                place, style = [arms.index(one.arm)], _style(study, one)
                axes.errorbar([score.mean], place, xerr=_bars(score), **style)
        axes.set_xlim(*_limits(of_level, study.metric))
        axes.set_xlabel(study.metric)
        axes.set_title(f"{study.factor}: {level.name}" if level.name else "", fontsize=9)
    row[0].set_yticks(range(len(arms)), arms)
    row[0].set_ylim(len(arms) - 0.5, -0.5)  # the first arm on top


def _draw_costs(figure: SubFigure, study: Study, found: Sequence[Found], costs: Mapping[str, Cost]) -> None:
    row = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (label, cost) in zip(row, costs.items(), strict=True):
        for one in found:
            score, spent = estimate_of(one.trained, study.metric), cost(one.trained)
            if score is not None and spent:
                axes.errorbar([spent], [score.mean], yerr=_bars(score), **_style(study, one))
        axes.set_xlabel(label)
        low, high = axes.dataLim.intervalx
        if high > WIDE * low:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # matplotlib's looks for TeX's fonts
            axes.xaxis.set_minor_formatter(NullFormatter())
    row[0].set_ylabel(study.metric)
    row[0].set_ylim(*_limits(found, study.metric))


def _style(study: Study, one: Found) -> dict[str, Any]:
    arm = [arm.name for arm in study.arms].index(one.arm)
    level = [level.name for level in study.levels].index(one.level) if study.levels else 0
    mark = MARKERS[(level + arm // len(OKABE_ITO)) % len(MARKERS)]
    colour = OKABE_ITO[arm % len(OKABE_ITO)]
    return {"color": colour, "marker": mark, "markersize": 6, "linestyle": "none", "linewidth": 1}


def _bars(score: Estimate) -> list[list[float]] | None:
    if score.low is None or score.high is None:
        return None
    return [[score.mean - score.low], [score.high - score.mean]]


def _pflop_of(trained: Sequence[Trained]) -> float | None:
    return mean_of(trained, PFLOP)


def _differs(costs: Sequence[float | None]) -> bool:
    known = [cost for cost in costs if cost]
    return bool(known) and max(known) > EQUAL * min(known)


def _limits(found: Sequence[Found], metric: str) -> tuple[float, float]:
    means = [score.mean for one in found if (score := estimate_of(one.trained, metric)) is not None]
    if not means:
        return 0.0, 1.0
    margin = max(0.01, (max(means) - min(means)) / 2)
    return max(0.0, min(means) - margin), min(1.0, max(means) + margin)
