"""Runs side by side: what each reached, what it cost, and only the configuration that differs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.config.schema import TrackingConfig
from harness.errors import TrackingError, did_you_mean
from harness.tracking import names
from harness.tracking.runs import RunRecord, find_runs, newest_sweep

Cell = str | float | None  # a float is a measurement, a string everything else; None was not recorded

RUN, TRIAL, STATUS = "run", "trial", "status"
BEST_EPOCH, MINUTES, TRAINABLE, RUN_ID = "best epoch", "minutes", "trainable", "run id"
# Where files lie shaped nothing; parameter counts have their own column.
IGNORED_PARAMS = ("tracking.", "data.dir", "data.cache_dir", "parameters.")
TEXT_WIDTH = 400  # characters; a terminal narrower than the table would cut numbers in half


@dataclass(frozen=True)
class Comparison:
    """A table, one row per run, best first."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    constant: int  # configuration columns left out because all runs agree

    def to_text(self, width: int | None = None) -> str:
        """Return the table for a terminal; without `width`, as wide as it needs."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, column in enumerate(self.columns):
            is_number = any(isinstance(row[number], float) for row in self.rows)
            table.add_column(column, justify="right" if is_number else "left", overflow="fold")
        for row in self._texts():
            table.add_row(*row)
        console = Console(file=io.StringIO(), width=width or TEXT_WIDTH, color_system=None, markup=False)
        console.print(table)
        output = console.file
        assert isinstance(output, io.StringIO)
        lines = [line.rstrip() for line in output.getvalue().splitlines()]
        return "\n".join([*lines, f"{len(self.rows)} runs; {self.constant} settings are the same in all"])

    def to_csv(self) -> str:
        """Return the table as CSV, numbers in full."""
        output = io.StringIO()
        writer = csv.writer(output, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_plain(cell) for cell in row] for row in self.rows)
        return output.getvalue()

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        head = [_markdown_row(self.columns), _markdown_row(["---"] * len(self.columns))]
        return "\n".join([*head, *map(_markdown_row, self._texts())]) + "\n"

    def write(self, output_dir: Path) -> tuple[Path, Path]:
        """Write `compare.csv` and `compare.md`; return their paths.

        Raises:
            TrackingError: the folder cannot be written.
        """
        table, document = output_dir / "compare.csv", output_dir / "compare.md"
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            table.write_text(self.to_csv(), encoding="utf-8")
            document.write_text(self.to_markdown(), encoding="utf-8")
        except OSError as error:
            raise TrackingError(
                f"{output_dir} cannot be written ({error.strerror}): choose another"
            ) from error
        return table, document

    def _texts(self) -> list[list[str]]:
        return [
            [_text(column, cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows
        ]


def compare(records: Sequence[RunRecord], sort: str = names.VAL_ACCURACY) -> Comparison:
    """Return the runs as a table, best first; runs that tie keep their order, runs without a value come last.

    Args:
        sort: a column of the table, such as ``val/accuracy``, ``minutes`` or ``optim.lr``.

    Raises:
        TrackingError: there is no run, or no such column.
    """
    if not records:
        raise TrackingError("there is no run to compare: give ids, a sweep or a filter that fits some")
    settings = differing_params(records)
    rows = [_facts(record) | {key: _setting(record, key) for key in settings} for record in records]
    columns = _columns(rows, settings)
    if sort not in columns and sort != names.VAL_ACCURACY:  # the default: absent where no run got that far
        raise TrackingError(f"no column {sort!r} to sort by{did_you_mean(sort, columns)}")
    rows.sort(key=lambda row: _sort_key(row.get(sort), sort))
    constant = len({key for record in records for key in _params(record)}) - len(settings)
    return Comparison(columns, tuple(tuple(row.get(c) for c in columns) for row in rows), constant)


def compare_command(
    tracking: TrackingConfig,
    *,
    run_ids: Sequence[str] | None = None,
    sweep: str | None = None,
    filter_string: str | None = None,
    sort: str = names.VAL_ACCURACY,
    output_dir: Path | None = None,
) -> str:
    """Return the table of the runs asked for (by default the newest sweep's trials), and write it.

    Raises:
        TrackingError: no run fits, or a name in the request is wrong.
    """
    if not (run_ids or sweep or filter_string):
        newest = newest_sweep(tracking)
        sweep = newest.sweep if newest is not None else None
    records = find_runs(tracking, run_ids=run_ids or None, sweep=sweep, filter_string=filter_string)
    if not run_ids:  # a sweep's parent trains nothing
        records = [record for record in records if record.kind != "sweep"]
    comparison = compare(records, sort)
    lines = [f"sweep {sweep}"] if sweep else []
    lines.append(comparison.to_text())
    if output_dir is not None:
        lines.append("written: " + ", ".join(map(str, comparison.write(output_dir))))
    return "\n".join(lines)


def differing_params(records: Sequence[RunRecord]) -> list[str]:
    """Return the configuration keys that the runs do not agree on; a key that some lack differs, too."""
    keys = {key: None for record in records for key in _params(record)}  # a set that keeps its order
    return [key for key in keys if len({record.params.get(key) for record in records}) > 1]


def _params(record: RunRecord) -> list[str]:
    return [key for key in record.params if not key.startswith(IGNORED_PARAMS)]


def _facts(record: RunRecord) -> dict[str, Cell]:
    measured: dict[str, Cell] = {
        key: value for key, value in sorted(record.metrics.items()) if key.startswith(("val/", "test/"))
    }
    best_epoch = record.metrics.get(names.BEST_EPOCH)
    return {
        RUN: record.name,
        TRIAL: None if record.trial is None else float(record.trial),
        STATUS: "pruned" if record.tags.get(names.PRUNED) == "true" else record.status.lower(),
        **measured,
        BEST_EPOCH: None if best_epoch is None else best_epoch + 1,  # people count from 1
        MINUTES: record.minutes,
        TRAINABLE: _setting(record, names.TRAINABLE_PARAMETERS),
        RUN_ID: record.run_id[:12],
    }


def _columns(rows: Sequence[dict[str, Cell]], settings: Sequence[str]) -> tuple[str, ...]:
    """Return the columns in which anything is recorded: results, cost, configuration, id."""
    filled = {column for row in rows for column, cell in row.items() if cell is not None}
    results = sorted({c for c in filled if c.startswith(("val/", "test/"))}, key=_result_order)
    wanted = [RUN, TRIAL, STATUS, *results, BEST_EPOCH, MINUTES, TRAINABLE, *settings, RUN_ID]
    return tuple(column for column in wanted if column in filled)


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
    larger_is_better = column.startswith(("val/", "test/")) and not column.endswith("loss")
    return (0, -cell if larger_is_better else cell, "")


def _plain(cell: Cell) -> Cell:
    """Return a cell for CSV: whole numbers without a point."""
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell


def _text(column: str, cell: Cell) -> str:
    match cell:
        case None:
            return "-"
        case str():
            return cell
        case _ if column == MINUTES:
            return f"{cell:.1f}"
        case _ if column.startswith(("val/", "test/")):
            return f"{cell:.4f}"
        case _ if cell.is_integer() and abs(cell) < 1e15:
            return f"{int(cell):,}" if column == TRAINABLE else str(int(cell))
        case _:
            return f"{cell:.4g}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
