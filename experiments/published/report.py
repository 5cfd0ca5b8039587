"""Turns the results of an experiment into its REPORT.md, and those of all experiments into a table.

`__main__.py` calls `copy_pictures`, `render` and `table`. Every figure comes from `results.py`; what has
not run is said so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.published.plan import FOLDER, Experiment, Plan, load
from experiments.published.results import Results, gains
from experiments.trainings import (
    NOT_YET,
    TEST,
    TEST_AUC,
    TEST_PLAIN,
    VAL,
    WALL_CLOCK,
    Arm,
    Trained,
    describe,
    describe_added,
    describe_difference,
    estimate_of,
    minutes_of,
)
from harness.analysis.layout import markdown_table
from harness.analysis.seeds import estimate
from harness.tracking.artifacts import read_artifact
from harness.tracking.runs import find_runs

REPORT = "REPORT.md"
PUBLISHED_ON = "cifar10"
CLOSE = 0.015  # of test accuracy, within which a figure counts as reproduced
# Drawn by the first seed's run, of the test images: what it takes for what, its most confident mistakes.
PICTURES = {
    "confusion.png": "test/confusion.png",
    "confident_mistakes.png": "pictures/test/confident_mistakes.png",
}
LARGEST_PICTURE = 200_000  # bytes


# ── one experiment ────────────────────────────────────────────────────────────────────────────────


def render(experiment: Experiment, results: Results, pictures: Sequence[str] = ()) -> str:
    """Return an experiment's report, in Markdown.

    Args:
        pictures: names of files beside the report.
    """
    plan = experiment.plan
    command = f"make experiment NAME={experiment.name}"
    parts = [
        f"# {plan.title}",
        f"Written by `{command}` from recorded runs; repeat it to go on. The training is "
        f"[`recipe={plan.recipe}`](../../../configs/recipe/{plan.recipe}.yaml), the plan "
        f"[`experiment.yaml`](experiment.yaml), all figures are in [`results.json`](results.json).",
        *plan.notes,
        *_conditions(experiment, results),
        "## The published training",
        plan.source,
        *_published(plan, results),
        *(f"![{name}]({name})" for name in pictures),
        "## Time",
        _time(results),
    ]
    if plan.strategies:
        parts += ["## Strategies", _strategies(plan, results)]
    if plan.tests_on_training:
        parts += ["## What training on the test images does to the figure", *_test_images(results)]
    if plan.ladder:
        parts += ["## From the published training to ours, step by step", *_ladder(plan, results)]
    return "\n\n".join(parts) + "\n"


def _conditions(experiment: Experiment, results: Results) -> list[str]:
    lines = [describe_added(results.added, experiment.planned)] if results.added else []
    if results.machine:
        lines.append(f"Data: {results.data}. Machine: {results.machine}. {WALL_CLOCK}")
    return lines


def _published(plan: Plan, results: Results) -> list[str]:
    if not results.published:
        return [f"{NOT_YET}."]
    rows = [
        [
            str(one.seed),
            _percent(one.metrics.get(TEST)),
            _plain(one.metrics.get(TEST_AUC)),
            _minutes(one.minutes),
        ]
        for one in results.published
    ]
    return [
        verdict(plan, results),
        _table(["seed", "test accuracy", "test AUC (macro)", "minutes of training"], rows),
    ]


def verdict(plan: Plan, results: Results) -> str:
    """Return a sentence: what the harness gets, beside what was published."""
    found = estimate_of(results.published, TEST)
    if found is None:
        return f"{NOT_YET}."
    said = f"**Test accuracy {describe(found)}**, read once a run, after the last epoch"
    claims = f" Its text claims {plan.claimed}." if plan.claimed else ""
    if results.data != PUBLISHED_ON:
        return f"{said}, on {results.data}: no figure was published for these images."
    if plan.published is None:
        return f"{said}; no figure of the published script is known for this training.{claims}"
    off = (found.mean - plan.published) * 100
    within = "within" if abs(off) <= CLOSE * 100 else "**not** within"
    compared = f"{off:+.1f} points, {within} {CLOSE * 100:g} points"
    spread = ""
    if found.deviation is not None:
        spread = (
            f" One run was published; ours deviate from their mean by {found.deviation * 100:.1f} points."
        )
    return f"{said} ({plan.published:.1%} as published): {compared}.{spread}{claims}"


def _time(results: Results) -> str:
    if not results.seconds:
        return f"{NOT_YET}."
    ratios = [one.ratio for one in results.seconds]
    rows = [
        [f"{one.harness:.1f}", f"{one.script:.1f}", f"{one.ratio:.2f}", f"{one.load:.1f}"]
        for one in results.seconds
    ]
    return (
        "One epoch of each in turn: the harness (`epoch_seconds` of a recorded run, validation included "
        "where it validates; no features of a frozen backbone are cached) and the published script, **in our "
        "transcription to PyTorch** ([`script.py`](../script.py)): the same network, batches and pixels, a "
        "plain DataLoader. The load is the number of processes that wanted the processors before (Unix's "
        "load average of a minute): where it exceeds their number, single figures say little.\n\n"
        + _table(["harness, s", "script, s", "harness ÷ script", "load"], rows)
        + f"\n\nMean ratio {sum(ratios) / len(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, "
        f"n = {len(ratios)})."
    )


def _strategies(plan: Plan, results: Results) -> str:
    named: list[tuple[str, Sequence[Trained]]] = [("the head only, as published", results.published)]
    named += [(arm.name, results.strategies.get(arm.name, ())) for arm in plan.strategies]
    rows = [
        [name, describe(estimate_of(trained, TEST)), _minutes(minutes_of(trained))] for name, trained in named
    ]
    return _table(["what trains", "test accuracy", "minutes"], rows)


def _test_images(results: Results) -> list[str]:
    honest, mixed = estimate_of(results.honest, TEST), estimate_of(results.mixed, TEST)
    before = estimate([one for one, _ in results.script], is_share=True) if results.script else None
    after = estimate([one for _, one in results.script], is_share=True) if results.script else None
    rows = [
        ["the harness, all training images", describe(honest)],
        ["the harness, 80 % of them and, on a copy of the data, the test images", describe(mixed)],
        ["the script, before it trains on the test images", describe(before)],
        ["the script, after 5 epochs on the test images, as published", describe(after)],
    ]
    lines = [_table(["trained on", "test accuracy"], rows)]
    if honest is not None and mixed is not None:
        images = "and images" if results.data == PUBLISHED_ON else "(not as many images: see the settings)"
        lines.append(
            f"With as many epochs {images}, test images among the training images "
            f"raise the reported figure by {(mixed.mean - honest.mean) * 100:.1f} points, though nothing has "
            "become better at images that it has not seen."
        )
    if before is not None and after is not None:
        lines.append(
            f"The published order raises it by {(after.mean - before.mean) * 100:.1f} points (our "
            "transcription, [`script.py`](../script.py))."
        )
    lines.append(
        "The harness reads the test split in one module "
        "([`held_out.py`](../../../harness/data/held_out.py)), for scores alone; training gets an object "
        "that holds no test images; and a training image that is an exact copy of a test image is left out."
    )
    if results.planted is not None:
        planted, trained = results.planted
        lines.append(
            f"Checked here: of {planted:,} unchanged test images that were put among the training images of "
            f"a copy, the harness trained on {trained:,}. To measure the second row, each image of the "
            "copy's test part therefore differs from itself in one bit ([`leak.py`](../leak.py))."
        )
    return lines


def _ladder(plan: Plan, results: Results) -> list[str]:
    found = gains(results) or [None] * len(plan.ladder)
    steps = [Arm(name="the published training, validated on 10 %"), *plan.ladder]
    rows = []
    for number, step in enumerate(steps):
        trained = results.ladder[number] if number < len(results.ladder) else ()
        gain = describe_difference(found[number - 1], has_run=bool(trained)) if number else "–"
        settings = f"`{' '.join(step.set)}`" if step.set else ""
        rows.append(
            [
                str(number),
                step.name,
                settings,
                describe(estimate_of(trained, VAL)),
                gain,
                _minutes(minutes_of(trained)),
            ]
        )
    lines = [
        "Each step adds to those before it. Judged on 10 % of the training images that train nothing, after "
        "the last epoch; the test split is not read. Gains are differences on the same seeds, with the 95 % "
        "interval of a paired t test; p values are corrected by Holm's method over the steps.",
        _table(["", "step", "settings", "validation accuracy", "gain, points", "minutes"], rows),
        *(f"{step.name}: {step.why}" for step in plan.ladder if step.why),
    ]
    ours = estimate_of(results.final, TEST)
    if ours is None:
        lines.append(f"The whole ladder, trained on all training images and tested once: {NOT_YET}.")
    else:
        goal = (
            ""
            if plan.goal is None
            else f" (wanted: at least {plan.goal:.0%} within {plan.minutes:g} minutes)"
        )
        without = estimate_of(results.final, TEST_PLAIN)
        plain = "" if without is None else f"; without test-time augmentation {describe(without)}"
        lines.append(
            f"**The whole ladder, trained on all training images: test accuracy {describe(ours)}**, read "
            f"once a run, in {_minutes(minutes_of(results.final))} minutes of training{goal}{plain}. Runs: "
            + ", ".join(f"`{one.run_id[:12]}` (seed {one.seed})" for one in results.final)
            + "."
        )
    return lines


# ── all experiments ───────────────────────────────────────────────────────────────────────────────


def table(found: Mapping[str, Results | None]) -> str:
    """Return the table of all experiments, in Markdown.

    Args:
        found: the results of each; None where there are none.
    """
    head = ["experiment", "as published", "the harness, the same training", "time ÷ the script's", "ours"]
    return _table(head, [_row(name, results) for name, results in found.items()])


def _row(name: str, results: Results | None) -> list[str]:
    plan = load(name).plan
    link = f"[`{name}`]({(FOLDER / name).relative_to(FOLDER.parents[1]).as_posix()}/{REPORT})"
    published = "–" if plan.published is None else f"{plan.published:.1%}"
    if plan.claimed:
        published += f" (claims {plan.claimed})"
    if results is None:
        return [link, published, NOT_YET, NOT_YET, NOT_YET]
    ratios = [one.ratio for one in results.seconds]
    ratio = f"{sum(ratios) / len(ratios):.2f}" if ratios else NOT_YET
    ours = "–"
    if plan.ladder:
        ours = describe(estimate_of(results.final, TEST))
        minutes = minutes_of(results.final)
        ours += f" in {minutes:.0f} min" if minutes is not None else ""
        plain = estimate_of(results.final, TEST_PLAIN)
        ours += f"; without test-time augmentation {plain.mean:.1%}" if plain is not None else ""
    backbone = " with " + " ".join(results.added) if results.added else ""
    return [link, published, describe(estimate_of(results.published, TEST)) + backbone, ratio, ours]


# ── pictures and words ────────────────────────────────────────────────────────────────────────────


def copy_pictures(experiment: Experiment, results: Results, folder: Path) -> list[str]:
    """Copy what the first published run has drawn to the report's folder; return the files that are there."""
    if results.published:
        tracking = experiment.config.tracking
        (run,) = find_runs(tracking, run_ids=[results.published[0].run_id])
        for file, artifact in PICTURES.items():
            try:
                content = read_artifact(tracking, run, artifact)
            except Exception as error:  # a picture that was not drawn costs no report
                print(f"no picture {artifact}: {error}")
                continue
            if len(content) <= LARGEST_PICTURE:
                (folder / file).write_bytes(content)
    return [file for file in PICTURES if (folder / file).is_file()]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(head, rows).rstrip("\n")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _minutes(minutes: float | None) -> str:
    return "–" if minutes is None else f"{minutes:.1f}"
