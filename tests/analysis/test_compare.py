from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from harness.analysis.charts import estimates_chart
from harness.analysis.compare import compare, differing_params
from harness.analysis.seeds import estimate
from harness.errors import TrackingError
from harness.tracking.choice import RecordedSweep
from harness.tracking.runs import RunRecord

RECORD = RunRecord(
    run_id="0" * 32,
    name="trial-0000",
    experiment_id="1",
    kind="trial",
    status="FINISHED",
    parent_run_id="p",
    sweep="s",
    trial=0,
    params={"optim.lr": "0.001", "model.kind": "lenet", "parameters.trainable": "62006", "tracking.dir": "x"},
    metrics={"val/accuracy": 0.5, "val/loss": 1.5, "train/loss": 1.0, "best_epoch": 2.0},
    tags={},
    start_s=1000.0,
    end_s=1090.0,
    artifact_uri="file:///nowhere",
)


def record(number: int, accuracy: float | None, **params: str) -> RunRecord:
    metrics = RECORD.metrics | {"val/accuracy": accuracy} if accuracy is not None else {}
    return replace(
        RECORD,
        run_id=str(number) * 32,
        name=f"trial-{number:04d}",
        trial=number,
        metrics=metrics,
        params=RECORD.params | {"tracking.dir": str(number)} | params,
    )


def column(table: str, name: str) -> list[str]:
    return [row[name] for row in csv.DictReader(io.StringIO(table))]


def test_only_what_differs_is_shown() -> None:
    table = compare([record(0, 0.5), record(1, 0.6, **{"optim.lr": "0.01"})])
    assert "optim.lr" in table.columns
    assert not {"model.kind", "tracking.dir", "parameters.trainable"} & set(table.columns)
    assert table.constant == 1


def test_a_setting_that_some_runs_lack_differs() -> None:
    runs = [record(0, 0.5), record(1, 0.5, **{"finetune.trainable_groups": "2"})]
    assert differing_params(runs) == ["finetune.trainable_groups"]


def test_best_first_ties_stable_missing_last() -> None:
    runs = [record(0, None), record(1, 0.5), record(2, float("nan")), record(3, 0.7), record(4, 0.5)]
    names = column(compare(runs).to_csv(), "run")
    assert names == ["trial-0003", "trial-0001", "trial-0004", "trial-0000", "trial-0002"]


def test_numbers_sort_as_numbers_and_losses_upwards() -> None:
    runs = [record(n, 0.5, **{"optim.lr": lr}) for n, lr in enumerate(["0.1", "1e-05", "0.02"])]
    assert column(compare(runs, "optim.lr").to_csv(), "optim.lr") == ["1e-05", "0.02", "0.1"]
    worse = replace(runs[0], metrics={"val/loss": 9.0})
    assert column(compare([worse, runs[1]], "val/loss").to_csv(), "val/loss") == ["1.5", "9"]


def test_cost_and_state() -> None:
    pruned = replace(record(1, 0.4), tags={"harness.pruned": "true"}, end_s=None)
    table = compare([record(0, 0.5), pruned]).to_csv()
    assert column(table, "minutes") == ["1.5", ""]
    assert column(table, "trainable") == ["62006", "62006"]
    assert column(table, "status") == ["finished", "pruned"]
    assert column(table, "best epoch") == ["3", "3"]  # the record counts from 0, people from 1


def test_minutes_are_those_of_training_not_of_the_nights_between_attempts() -> None:
    resumed = replace(record(0, 0.5), end_s=1000.0 + 9 * 3600)
    resumed.metrics["trained_seconds"] = 120.0
    assert column(compare([resumed]).to_csv(), "minutes") == ["2"]


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
def test_the_table_fits_the_terminal_and_says_what_does_not(width: int) -> None:
    keys = [f"some.rather.long.key.{k}" for k in range(30)]
    runs = [record(n, 0.5, **dict.fromkeys(keys, f"a value of 中文 that is very long {n}")) for n in range(3)]
    table = compare(runs)
    lines = table.to_text(width).splitlines()
    body = [line for line in lines if "runs;" not in line and "columns do not fit" not in line]
    assert max(map(cell_len, body)) <= width
    assert "trial-0000" in "".join(body)
    hidden = int(lines[-1].split()[0])
    shown = len(table.columns) - hidden
    assert lines[-1] == f"{hidden} more columns do not fit: --wide shows them"
    assert shown >= 1
    assert "more columns" not in table.to_text()


def test_a_terminal_gets_the_first_fifty_runs_and_the_files_all() -> None:
    table = compare([record(number, number / 100) for number in range(60)])
    text = table.to_text(80)
    assert text.count("trial-00") == 50
    assert "the first 50 of 60 runs" in text
    assert len(column(table.to_csv(), "run")) == 60


def test_text_shows_every_column_in_full() -> None:
    runs = [record(n, 0.5, **{f"some.rather.long.key.{k}": f"value-{n}" for k in range(9)}) for n in range(2)]
    text = compare(runs).to_text()
    for n in range(2):
        assert text.count(f"value-{n}") == 9
    assert "62,006" in text
    assert "0.5000" in text


def test_of_many_results_the_text_shows_the_important_ones_and_the_files_all() -> None:
    run = record(0, 0.5)
    extra = {"val/balanced_accuracy": 0.4, "val/brier": 0.3, "val/f1_weighted": 0.2, "test/accuracy": 0.45}
    table = compare([replace(run, metrics=run.metrics | extra), record(1, 0.6)])
    for text in (table.to_text(), table.to_text(400)):
        head = " ".join(text.splitlines()[:4])
        assert "balanced" in head
        assert "brier" not in head
        assert "2 more columns" in text
    assert "val/brier" in table.to_text(80, wide=True)
    assert "val/f1_weighted" in table.to_csv()
    assert "val/f1_weighted" in table.to_markdown()
    assert "2 more results are in compare.csv" in table.to_html()


@pytest.mark.parametrize("metric", ["val/brier", "val/ece_calibrated", "val/loss"])
def test_a_lower_error_sorts_first(metric: str) -> None:
    runs = [replace(record(n, 0.5), metrics={metric: value}) for n, value in enumerate((0.3, 0.1, 0.2))]
    assert column(compare(runs, metric).to_csv(), "trial") == ["1", "2", "0"]


def test_markdown_survives_bars_and_line_breaks() -> None:
    lines = compare([record(0, 0.5, note="a|b\nc"), record(1, 0.5)]).to_markdown().splitlines()
    assert len(lines) == 4
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_mistakes_get_one_line() -> None:
    with pytest.raises(TrackingError, match="no run to compare"):
        compare([])
    with pytest.raises(TrackingError, match="did you mean 'val/accuracy'"):
        compare([record(0, 0.5)], "val/acuracy")


def test_runs_that_never_measured_anything_can_be_compared() -> None:
    assert column(compare([record(0, None), record(1, None)]).to_csv(), "trial") == ["0", "1"]


def test_files(tmp_path: Path) -> None:
    comparison = compare([record(0, 0.5)])
    table, document, page = comparison.write(tmp_path / "a b" / "out")
    assert table.read_text(encoding="utf-8") == comparison.to_csv()
    assert document.read_text(encoding="utf-8") == comparison.to_markdown()
    html = page.read_text(encoding="utf-8")
    assert "trial-0000" in html
    assert 'src="http' not in html
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match="cannot be written"):
        comparison.write(tmp_path / "file" / "below")


def test_how_a_run_really_saw_its_images_is_a_column_and_what_was_asked_of_the_cache_is_none() -> None:
    asked = {"finetune.feature_views": "2", "finetune.cache_features": "true"}
    table = compare(
        [
            record(0, 0.5, **{"features.cached": "true", "features.views": "2"}, **asked),
            record(1, 0.4, **{"features.cached": "false", "features.views": "new in each epoch"}),
        ]
    ).to_csv()

    assert column(table, "features.cached") == ["true", "false"]
    assert column(table, "features.views") == ["2", "new in each epoch"]
    assert "finetune." not in table.splitlines()[0]


def seeded(number: int, accuracy: float, seed: int, lr: str, **others: str) -> RunRecord:
    return record(number, accuracy, seed=str(seed), **{"optim.lr": lr}, **others)


SEEDED = [
    *(seeded(seed, 0.80 + 0.01 * seed, seed, "0.01") for seed in range(3)),
    *(seeded(3 + seed, 0.70 + 0.011 * seed, seed, "0.001") for seed in range(3)),
]


def test_runs_that_differ_by_seed_alone_are_one_configuration() -> None:
    seeds = compare(SEEDED).seeds
    assert seeds is not None
    assert list(seeds.estimates) == ["lr=0.01", "lr=0.001"]
    assert [found.n for found in seeds.estimates.values()] == [3, 3]
    text = compare(SEEDED).to_text()
    assert "val/accuracy over seeds:" in text
    assert "lr=0.01 is better than lr=0.001 by 0.0990 val/accuracy" in text
    assert "| lr=0.01 | 3 | 0.8100 |" in compare(SEEDED).to_markdown()


def test_what_follows_from_the_kind_is_not_named() -> None:
    """Only partial runs have a number of groups and a decay: where these are the same, they tell nothing."""
    partial = {"finetune.kind": "partial", "finetune.layer_decay": "1.0"}
    runs = [
        *(seeded(seed, 0.8, seed, "0.01", **partial) for seed in range(2)),
        *(seeded(2 + seed, 0.7, seed, "0.01", **{"finetune.kind": "full"}) for seed in range(2)),
    ]
    seeds = compare(runs).seeds
    assert seeds is not None
    assert list(seeds.estimates) == ["kind=partial", "kind=full"]


def test_a_sweeps_configurations_are_named_by_what_it_searches() -> None:
    parent = replace(RECORD, kind="sweep", trial=None, tags={"harness.space": "optim.lr,finetune"})
    partial = {"finetune.kind": "partial", "data.samples_per_epoch": "900"}
    trials = [
        *(seeded(seed, 0.8 + seed / 100, seed, "0.01", **partial) for seed in range(2)),
        seeded(2, 0.7, 0, "0.02", **{"finetune.kind": "full", "data.samples_per_epoch": "500"}),
    ]
    seeds = compare(trials, sweep=RecordedSweep(parent, tuple(trials))).seeds
    assert seeds is not None
    assert list(seeds.estimates) == ["lr=0.01 kind=partial", "lr=0.02 kind=full"]
    # Two that differ in something else would have one name: then everything is named.
    unequal = [*trials, seeded(3, 0.6, 0, "0.02", **{"finetune.kind": "full", "data.samples_per_epoch": "9"})]
    seeds = compare(unequal, sweep=RecordedSweep(parent, tuple(unequal))).seeds
    assert seeds is not None
    assert sum("samples_per_epoch=" in name for name in seeds.estimates) == 3


def test_configurations_of_equal_short_names_have_rows_of_their_own() -> None:
    names = [f"{'a long name ' * 9}{place}" for place in range(3)]
    rows = estimates_chart("val/accuracy", {name: estimate([0.5, 0.6]) for name in names})["data"][0]["y"]
    assert len(set(rows)) == 3


def test_the_sentences_fit_the_terminal() -> None:
    text = compare(SEEDED).to_text(80)
    assert all(cell_len(line) <= 80 for line in text.splitlines())


def test_runs_of_one_seed_each_are_compared_by_no_seeds() -> None:
    assert compare([seeded(0, 0.8, 0, "0.01"), seeded(1, 0.7, 0, "0.001")]).seeds is None


def test_the_machine_is_no_part_of_a_configuration_and_a_failed_run_no_seed() -> None:
    elsewhere = [
        replace(run, params=run.params | {"machine.threads": str(i)}) for i, run in enumerate(SEEDED)
    ]
    failed = replace(seeded(9, 0.1, 7, "0.01"), status="FAILED")
    seeds = compare([*elsewhere, failed]).seeds
    assert seeds is not None
    assert [found.n for found in seeds.estimates.values()] == [3, 3]


def test_a_seed_that_was_run_again_counts_once_by_its_last_run() -> None:
    again = replace(seeded(9, 0.9, 0, "0.01"), start_s=2000.0)
    seeds = compare([again, *SEEDED]).seeds
    assert seeds is not None
    assert seeds.estimates["lr=0.01"].n == 3
    assert seeds.estimates["lr=0.01"].mean == pytest.approx((0.9 + 0.81 + 0.82) / 3)


def test_runs_of_one_configuration_get_an_interval_and_no_comparison() -> None:
    seeds = compare(SEEDED[:3]).seeds
    assert seeds is not None
    assert list(seeds.estimates) == ["all runs"]
    assert seeds.findings == ()


def test_runs_that_were_validated_on_different_images_are_refused() -> None:
    runs = [replace(run, val_digest=digest) for run, digest in zip(SEEDED, "aaabbb", strict=True)]
    with pytest.raises(TrackingError, match="validated on different images") as error:
        compare(runs)
    assert "3 on a" in str(error.value)
    earlier = [
        replace(run, val_digest=digest) for run, digest in zip(SEEDED, ["a"] * 3 + [None] * 3, strict=True)
    ]
    assert len(compare(earlier).rows) == 6


def test_a_minor_result_is_shown_where_the_table_is_sorted_by_it() -> None:
    further = {"best/val/ece": 0.1, "best/val/brier": 0.2, "test/accuracy": 0.4, "test/ece": 0.3}
    runs = [replace(run, metrics=run.metrics | further) for run in (record(0, 0.5), record(1, 0.6))]
    assert "test/ece" not in compare(runs).to_text()
    assert "test/ece" in compare(runs, sort="test/ece").to_text()
    assert "val/brier" not in compare(runs, sort="test/ece").to_text()
    assert "val/brier" in compare(runs).to_text(wide=True)
