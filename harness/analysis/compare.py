"""`harness compare`: recorded runs side by side, with their scores, their cost and the settings that differ.

`compare_runs` is the entry; `table.py` lays the result out as text, CSV and Markdown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from harness.analysis.discordant import Discordant, Side
from harness.analysis.paired import ImagesReport, check_same_images, compare_images
from harness.analysis.seeds import (
    HALF_A_POINT,
    compare_groups,
    describe,
    estimate,
    explain_odds,
    is_within_one,
)
from harness.analysis.table import (
    BEST_EPOCH,
    MINUTES,
    RUN,
    RUN_ID,
    STATUS,
    TRAINABLE,
    TRIAL,
    Cell,
    Comparison,
    SeedsReport,
)
from harness.config.dotted_paths import short_names
from harness.config.schema import RunConfig, TrackingConfig
from harness.config.validation import validate
from harness.data.load import find_validation
from harness.errors import TrackingError, did_you_mean
from harness.tracking import names
from harness.tracking.artifacts import load_predictions
from harness.tracking.choice import (
    COMPLETE,
    RecordedSweep,
    find_sweep,
    find_sweeps,
    newest_sweep,
    read_sweep,
    rivals_of,
    trials_of,
)
from harness.tracking.runs import RunRecord, find_runs, get_run, read_config

if TYPE_CHECKING:
    from harness.analysis.predictions import Predictions
    from harness.data.splits import ImageArrays

# Parameters that get no column of settings. The folders do not influence a result, and parameter counts have
# a column of their own. `finetune.cache_features` is only a request, which a run may be unable to fulfil: the
# parameters under `features.` say how it trained.
IGNORED_PARAMS = (
    "tracking.",
    "evaluation.pictures",
    "data.dir",
    "data.cache_dir",
    "parameters.",
    "finetune.cache_features",
    "finetune.feature_views",
)
# Settings that may differ between runs of one configuration: the seed, and where the run took place.
NOT_OF_A_CONFIGURATION = ("seed", "machine.device_name", "machine.threads", "trainer.threads")
# Results that everybody looks at. A run has some twenty others, which follow from the same predictions:
# they are columns of the files, and of the text with --wide.
IMPORTANT_RESULTS = (
    "val/accuracy", "val/accuracy_no_tta", "val/balanced_accuracy", "val/loss", "val/ece", "test/accuracy",
    "test/accuracy_no_tta", "val/mAP", "val/mAP_no_tta", "test/mAP", "test/mAP_no_tta",
)  # fmt: skip
VAL_MAP = "val/mAP"
LOWER_IS_BETTER = ("loss", "brier", "ece")  # how the last part of such a metric's name begins
NUM_PAIRED = 6  # best runs whose predictions of the same images are compared in pairs
NO_ANSWER = ("infeasible", "failed")  # such a run stands below all others, however good its score


def compare(
    records: Sequence[RunRecord],
    sort: str | None = None,
    sweep: RecordedSweep | None = None,
) -> Comparison:
    """Return the runs as a table, best first; runs that tie keep their order, runs without a value come last.

    Args:
        sort: a column of the table, such as ``val/accuracy``, ``minutes`` or ``optim.lr``. By default, a
            sweep's trials stand as in its leaderboard, other runs by ``val/accuracy``.
        sweep: the sweep, if all the runs are trials of one.

    Raises:
        TrackingError: there is no run, or no such column, or the runs were validated on different images.
    """
    if not records:
        raise TrackingError("there is no run to compare: give ids, a sweep or a filter that fits some")
    check_same_validation(records)
    metric = _default_metric(records) if sweep is None else sweep.metric
    settings = differing_params(records)
    if sweep is not None:
        meant = {record.run_id for record in records}
        records = [trial for trial in sweep.ranked if trial.run_id in meant]
    rows = [_facts(record) | {key: _setting(record, key) for key in settings} for record in records]
    if sweep is not None:  # the score that the sweep received, as in its leaderboard
        for record, row in zip(records, rows, strict=True):
            row[metric] = sweep.score(record)
    columns = _columns(rows, settings, metric)
    if sort is not None and sort not in columns:
        raise TrackingError(f"no column {sort!r} to sort by{did_you_mean(sort, columns)}")
    if sort is not None:
        rows.sort(key=lambda row: _sort_key(row.get(sort), sort))
    elif sweep is None:
        rows.sort(key=lambda row: (row[STATUS] in NO_ANSWER, _sort_key(row.get(metric), metric)))
    constant = len({key for record in records for key in _params(record)}) - len(settings)
    return Comparison(
        columns,
        tuple(tuple(row.get(c) for c in columns) for row in rows),
        constant,
        _ranking(columns, rows, settings, metric, sweep),
        minor=frozenset(c for c in columns if _is_result(c) and c not in (metric, sort, *IMPORTANT_RESULTS)),
        seeds=compare_seeds(records, settings, metric, sweep),
    )


def compare_seeds(
    records: Sequence[RunRecord], settings: Sequence[str], metric: str, sweep: RecordedSweep | None = None
) -> SeedsReport | None:
    """Group runs that differ by seed alone, and compare the configurations over their seeds.

    Only completed runs count. A seed that was run more than once counts by its last run.

    Args:
        settings: those that are not the same in all runs.

    Returns:
        None where no configuration was run with two seeds.
    """
    chosen = [key for key in settings if key not in NOT_OF_A_CONFIGURATION]
    groups: dict[tuple[str | None, ...], dict[int, float]] = {}
    ids: dict[tuple[str | None, ...], dict[int, str]] = {}
    for record in sorted(records, key=lambda record: record.start_s):
        score = record.results.get(metric) if sweep is None else sweep.score(record)
        seed = record.params.get("seed", "")
        if sweep is not None and sweep.is_replicated(record):
            continue  # it was replicated for its high score, which does not count among the fresh ones
        if record.outcome in COMPLETE and score is not None and math.isfinite(score) and seed.isdecimal():
            key = tuple(record.params.get(setting) for setting in chosen)
            groups.setdefault(key, {})[int(seed)] = score
            ids.setdefault(key, {})[int(seed)] = record.run_id
    if all(len(scores) < 2 for scores in groups.values()):
        return None
    minimizes = sweep is not None and sweep.minimizes
    configurations = _configurations(chosen, list(groups), sweep)
    by_name = dict(zip(configurations, groups.values(), strict=True))
    runs = {name: tuple(by_seed.values()) for name, by_seed in zip(configurations, ids.values(), strict=True)}
    is_share = is_within_one(metric, minimizes=minimizes)
    estimates = {name: estimate(list(scores.values()), is_share=is_share) for name, scores in by_name.items()}
    best_first = sorted(estimates, key=lambda name: estimates[name].mean, reverse=not minimizes)
    pairs = compare_groups({name: by_name[name] for name in best_first}, minimizes=minimizes)
    worthwhile = HALF_A_POINT if is_share else None
    return SeedsReport(
        metric=metric,
        estimates={name: estimates[name] for name in best_first},
        runs=runs,
        findings=tuple(((pair.first, pair.second), describe(pair, metric, worthwhile)) for pair in pairs),
        note=explain_odds(pairs),
    )


def _configurations(
    settings: Sequence[str], groups: Sequence[tuple[str | None, ...]], sweep: RecordedSweep | None
) -> list[str]:
    """Name each group by the values of the settings in which the groups differ.

    In a sweep, what is searched is enough: its rules and its equal compute decide the rest. A setting that
    has one value, and that some groups do not have, follows from their kind. Where such names would be equal,
    all settings are named.
    """
    apart = [place for place in range(len(settings)) if len({group[place] for group in groups}) > 1]
    if sweep is not None:
        telling = sorted(
            (place for place in apart if sweep.is_searched(settings[place])),
            key=lambda place: sweep.place(settings[place]),
        )
    else:
        telling = [place for place in apart if len({group[place] for group in groups} - {None}) > 1]
    found = _name_all(settings, groups, telling)
    return found if len(set(found)) == len(groups) else _name_all(settings, groups, apart)


def _name_all(
    settings: Sequence[str], groups: Sequence[tuple[str | None, ...]], places: Sequence[int]
) -> list[str]:
    """Name each group by some settings, with rounded numbers unless two names would then be equal."""
    shown = short_names([settings[place] for place in places])

    def name_all(text_of: Callable[[str], str]) -> list[str]:
        return [
            " ".join(
                f"{name}={text_of(value)}"
                for name, place in zip(shown, places, strict=True)
                if (value := group[place]) is not None
            )
            or "all runs"
            for group in groups
        ]

    short = name_all(_rounded)
    return short if len(set(short)) == len(groups) else name_all(str)


def _rounded(value: str) -> str:
    """Return a recorded number with four digits, as the table shows it; any other value as it is."""
    try:
        return value if value.isdecimal() else f"{float(value):.4g}"
    except ValueError:
        return value


def check_same_validation(records: Sequence[RunRecord]) -> None:
    """Refuse to rank runs whose scores were measured on different images.

    Raises:
        TrackingError: the runs have different validation images. Runs of earlier versions, which recorded no
            digest of them, are not refused.
    """
    runs_of: dict[str, list[str]] = {}
    for record in records:
        if record.val_digest is not None:
            runs_of.setdefault(record.val_digest, []).append(record.run_id[:12])
    if len(runs_of) > 1:
        shown = ", ".join(f"{len(ids)} on {digest[:8]} ({ids[0]}, …)" for digest, ids in runs_of.items())
        raise TrackingError(
            f"the runs were validated on different images, so their scores cannot be compared: {shown}; name "
            "runs of one data set and one split"
        )


def compare_runs(
    tracking: TrackingConfig,
    run_ids: Sequence[str] = (),
    *,
    sweep: str | None = None,
    filter: str | None = None,
    sort: str | None = None,
) -> Comparison:
    """Return the table of the recorded runs asked for; by default, of the sweep that ran last.

    Args:
        sweep: a sweep's name, or its run's id.
        filter: an MLflow filter, such as ``metrics.`val/accuracy` > 0.8``.
        sort: a column of the table, see `compare`.

    Raises:
        TrackingError: no run fits, or a name in the request is wrong.
    """
    parent, notes = _sweep_asked_for(tracking, run_ids, sweep, filter)
    if parent is None:
        records = find_runs(tracking, run_ids=run_ids or None, filter_string=filter)
        if not run_ids:  # a sweep's parent trains nothing
            records = [record for record in records if record.kind != "sweep"]
        table = compare(records, sort)
        return replace(_with_images(tracking, records, table), notes=(*notes, *_unpaired(records)))
    of_sweep = read_sweep(tracking, parent)
    records = trials_of(tracking, parent, filter) if filter else list(of_sweep.trials)
    same = [record for record in records if not of_sweep.has_own_validation(record)]
    if len(same) < len(records):
        notes.append(
            f"note: {len(records) - len(same)} replicates with validation images of their own are left out"
        )
        records = same
    if not records:
        raise TrackingError(f"no trial of sweep {of_sweep.name} is recorded that could be compared")
    table = compare(records, sort, of_sweep)
    return replace(_with_images(tracking, records, table), notes=(*notes, *_unpaired(records)))


def _unpaired(records: Sequence[RunRecord]) -> tuple[str, ...]:
    if len(records) < 2 or not _are_multilabel(records):
        return ()
    return (
        "note: multi-label runs are not compared in pairs on the same images (McNemar's test takes one "
        "answer to an image, right or wrong): seeds alone tell whether one is better",
    )


def _default_metric(records: Sequence[RunRecord]) -> str:
    return VAL_MAP if _are_multilabel(records) else names.VAL_ACCURACY


def _are_multilabel(records: Sequence[RunRecord]) -> bool:
    """Return whether runs are of images with several labels each; runs of one table have the same images."""
    return any(VAL_MAP in record.results for record in records)


def _with_images(tracking: TrackingConfig, records: Sequence[RunRecord], table: Comparison) -> Comparison:
    """Return a table with what its best runs answered to each of the validation images.

    Raises:
        TrackingError: the predictions are of different images.
    """
    by_id = {record.run_id: record for record in records}

    @cache
    def load(run_id: str) -> Predictions:
        return load_predictions(tracking, by_id[run_id])

    images = _paired_images(load, records, table)
    if images is None:
        return table
    sides = _best_configurations(load, table.seeds)
    if sides is None:
        first, second, *_ = (Side(name, (one,)) for name, one in images.predictions.items())
        sides = first, second
    some = sides[0].runs[0]

    @cache
    def find_images() -> ImageArrays:
        """Return the validation images, which all of the runs have."""
        data = validate(RunConfig, read_config(records[0])).data
        return find_validation(data, some.digest)

    discordant = Discordant(*sides, lambda places: find_images().gather(places))
    return replace(table, images=images, discordant=discordant)


def _best_configurations(
    load: Callable[[str], Predictions], seeds: SeedsReport | None
) -> tuple[Side, Side] | None:
    """Return what the two best configurations answered with each of their seeds, at most `NUM_PAIRED`.

    Args:
        load: returns the predictions of a run, by its id.

    Returns:
        None where there are no two configurations, one of them with several seeds, that kept it all.
    """
    if seeds is None or len(seeds.estimates) < 2:
        return None
    sides = []
    for name in list(seeds.estimates)[:2]:
        try:
            runs = [load(run) for run in seeds.runs[name][:NUM_PAIRED]]
        except TrackingError:
            return None
        sides.append(Side(name, tuple(runs)))
    every = {f"{side.name}, {place}": run for side in sides for place, run in enumerate(side.runs)}
    check_same_images(every)
    return sides[0], sides[1]


def _paired_images(
    load: Callable[[str], Predictions], records: Sequence[RunRecord], table: Comparison
) -> ImagesReport | None:
    """Compare the best runs of a table on the validation images whose predictions they keep.

    Args:
        load: returns the predictions of a run, by its id.

    Raises:
        TrackingError: the predictions are of different images.
    """
    by_id = {record.run_id[:12]: record for record in records}
    place = table.columns.index(RUN_ID)
    ranked = [by_id[str(row[place])] for row in table.rows]
    ended = [record for record in ranked if record.outcome in COMPLETE]
    names_of = [run.name if run.trial is None else f"trial {run.trial}" for run in ended[:NUM_PAIRED]]
    found: dict[str, Predictions] = {}
    missing = 0
    for name, record in zip(names_of, ended, strict=False):
        with_id = name if names_of.count(name) == 1 else f"{name} ({record.run_id[:8]})"
        try:
            found[with_id] = load(record.run_id)
        except TrackingError:
            missing += 1
    notes = [f"the first {NUM_PAIRED} of {len(ended):,} runs"] if len(ended) > NUM_PAIRED else []
    notes += [f"{missing} kept no predictions"] if missing else []
    return compare_images(found, f" ({'; '.join(notes)})" if notes else "")


def _sweep_asked_for(
    tracking: TrackingConfig, run_ids: Sequence[str] | None, sweep: str | None, filter_string: str | None
) -> tuple[RunRecord | None, list[str]]:
    """Return the parent run of the sweep asked for, or None if none is, and lines that name the sweep."""
    if sweep is None and not run_ids and not filter_string:
        parent = newest_sweep(tracking)
        if parent is None:
            return None, []
        also = [f"{run.sweep} (--sweep {run.run_id[:12]})" for run in rivals_of(tracking, parent)]
        notes = [f"note: at the same time ran {', '.join(also)}"] if also else []
        return parent, [f"sweep {parent.sweep}", *notes]
    if sweep is None and run_ids is not None and len(run_ids) == 1:
        run = get_run(tracking, run_ids[0])
        sweep = run.run_id if run.kind == "sweep" else None
    if sweep is None:
        return None, []
    parent = find_sweep(tracking, sweep)
    namesakes = [
        run for run in find_sweeps(tracking) if run.sweep == parent.sweep and run.run_id != parent.run_id
    ]
    also = [f"--sweep {run.run_id[:12]}" for run in namesakes]
    notes = (
        [f"note: this one is run {parent.run_id[:12]}; others of this name: {', '.join(also)}"]
        if also
        else []
    )
    return parent, [f"sweep {parent.sweep}", *notes]


def differing_params(records: Sequence[RunRecord]) -> list[str]:
    """Return the settings that differ between runs, including those that only some of the runs have."""
    keys = {key: None for record in records for key in _params(record)}  # a dict, to keep their order
    return [key for key in keys if len({record.params.get(key) for record in records}) > 1]


def _params(record: RunRecord) -> list[str]:
    return [key for key in record.params if not key.startswith(IGNORED_PARAMS)]


def _facts(record: RunRecord) -> dict[str, Cell]:
    measured: dict[str, Cell] = {**record.results}
    best_epoch = record.metrics.get(names.BEST_EPOCH)
    return {
        RUN: record.name,
        TRIAL: None if record.trial is None else float(record.trial),
        STATUS: record.outcome,
        **measured,
        BEST_EPOCH: None if best_epoch is None else best_epoch + 1,  # people count from 1
        MINUTES: record.minutes,
        TRAINABLE: _setting(record, names.TRAINABLE_PARAMETERS),
        RUN_ID: record.run_id[:12],
    }


def _columns(rows: Sequence[dict[str, Cell]], settings: Sequence[str], metric: str) -> tuple[str, ...]:
    """Return the columns in which anything is recorded: results, cost, configuration, id."""
    filled = {column for row in rows for column, cell in row.items() if cell is not None}
    results = sorted(
        {column for column in filled if column.startswith(("val/", "test/"))},
        key=lambda column: (column != metric, _result_order(column)),
    )
    wanted = [RUN, TRIAL, STATUS, *results, BEST_EPOCH, MINUTES, TRAINABLE, *settings, RUN_ID]
    return tuple(column for column in wanted if column in filled)


def _ranking(
    columns: Sequence[str],
    rows: Sequence[dict[str, Cell]],
    settings: Sequence[str],
    metric: str,
    sweep: RecordedSweep | None,
) -> tuple[str, ...]:
    """Return the columns by importance: the run, its result, its settings.

    Settings that the sweep searches come first, in the order of its space. The others follow: those that most
    runs have, then those with the most values.
    """

    def key(setting: str) -> tuple[int, int, int]:
        values = [row.get(setting) for row in rows]
        place = 0 if sweep is None else sweep.place(setting)
        return (place, sum(value is None for value in values), -len(set(values)))

    name, other = (RUN, TRIAL) if sweep is None else (TRIAL, RUN)
    by_importance = sorted(settings, key=key)
    first = [name, STATUS, metric, MINUTES, *by_importance[:3], RUN_ID, *by_importance[3:]]
    wanted = list(dict.fromkeys([*first, BEST_EPOCH, *columns]))
    return tuple(column for column in wanted if column in columns and column != other) + (
        (other,) if other in columns else ()
    )


def _is_result(column: str) -> bool:
    return column.startswith(("val/", "test/"))


def _result_order(column: str) -> tuple[int, int, str]:
    """Sort validation before test, and accuracy before everything else."""
    return (column.startswith("test/"), not column.endswith("/accuracy"), column)


def _setting(record: RunRecord, key: str) -> Cell:
    """Return a recorded parameter, as a number where it is one, so that it sorts as one."""
    text = record.params.get(key)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _sort_key(cell: Cell, column: str) -> tuple[int, float, str]:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return (2, 0.0, "")
    if isinstance(cell, str):
        return (1, 0.0, cell)
    is_lower_better = column.rpartition("/")[2].startswith(LOWER_IS_BETTER)
    larger_is_better = _is_result(column) and not is_lower_better
    return (0, -cell if larger_is_better else cell, "")
