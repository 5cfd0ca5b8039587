"""`Comparison`: a table of runs, as text that fits a terminal, as CSV and as Markdown.

`compare.py` fills it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from harness.analysis.discordant import Discordant, image_sections
from harness.analysis.layout import markdown_table, wrapped, write_files
from harness.analysis.paired import ImagesReport
from harness.analysis.seeds import Estimate
from harness.config.dotted_paths import short_names

Cell = str | float | None  # a float is a number that can be compared; None: not recorded

RUN, TRIAL, STATUS = "run", "trial", "status"
BEST_EPOCH, MINUTES, TRAINABLE, RUN_ID = "best epoch", "minutes", "trainable", "run id"
NUM_SHOWN = 50  # runs, on a terminal; the files hold all
SHORT_ID = 8  # characters of a run's id where room is scarce; enough unless another id begins with them
GAP = 2  # blanks between two columns
MAX_CELL = 28  # characters of a cell where the width is limited; the files hold it whole


@dataclass(frozen=True)
class SeedsReport:
    """What runs that differ by seed alone show about their configurations."""

    metric: str
    estimates: Mapping[str, Estimate]  # by configuration, the best first
    runs: Mapping[str, tuple[str, ...]]  # their ids, likewise
    findings: tuple[tuple[tuple[str, str], str], ...]  # two configurations, and a sentence about them
    note: str | None = None  # on how to read the sentences

    def to_text(self, width: int | None = None) -> str:
        """Return the estimates, and how the best configuration compares with each of the others."""
        widest = max(map(cell_len, self.estimates))
        best = next(iter(self.estimates))
        shown = [sentence for pair, sentence in self.findings if best in pair]
        hidden = len(self.findings) - len(shown)
        lines = [f"{self.metric} over seeds:"]
        lines += [f"  {name:<{widest}}  {estimate}" for name, estimate in self.estimates.items()]
        lines += wrapped([*shown, *([self.note] if self.note else [])], width)
        lines += [f"{hidden} more comparisons are in the files"] if hidden else []
        return "\n".join(lines)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the estimates: head and rows."""
        head = ["configuration", "runs", f"mean {self.metric}", "deviation", "95 % interval"]
        rows = [
            [
                name,
                str(e.n),
                f"{e.mean:.4f}",
                "-" if e.deviation is None else f"{e.deviation:.4f}",
                "-" if e.low is None or e.high is None else f"{e.low:.4f} to {e.high:.4f}",
            ]
            for name, e in self.estimates.items()
        ]
        return head, rows

    def to_markdown(self) -> str:
        """Return the estimates as a table, and every comparison."""
        return "\n".join([markdown_table(*self.table()), *(f"- {line}" for line in self.sentences())]) + "\n"

    def sentences(self) -> list[str]:
        """Return a sentence about every two configurations, and how to read them."""
        return [sentence for _, sentence in self.findings] + ([self.note] if self.note else [])


@dataclass(frozen=True)
class Comparison:
    """A table, one row per run, best first."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    constant: int  # how many settings were left out because they are the same in all runs
    ranking: tuple[str, ...] = ()  # the columns, the most important first
    minor: frozenset[str] = frozenset()  # columns that only the files and the widest text show
    seeds: SeedsReport | None = None  # where a configuration was run with several seeds
    images: ImagesReport | None = None  # where predictions of the same images are kept
    discordant: Discordant | None = None  # likewise: of the best two configurations, or models
    notes: tuple[str, ...] = ()  # which runs were taken, and which others may be meant

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, width: int | None = None, *, wide: bool = False) -> str:
        """Return the first runs, with the important columns that fit into `width`.

        Args:
            width: of the terminal; None: as wide as it needs to be.
            wide: show every column, whatever the width.
        """
        texts = self.texts()[:NUM_SHOWN]
        titles = list(self.columns)
        shown = [place for place, name in enumerate(titles) if wide or name not in self.minor]
        width = None if wide else width
        if width is not None:
            identity = self.columns.index(RUN_ID)
            texts = [[*row[:identity], row[identity][:SHORT_ID], *row[identity + 1 :]] for row in texts]
            titles = _short_titles(self.columns)
            ranking = [self.columns.index(name) for name in self.ranking if name not in self.minor]
            shown = _fitting(titles, texts, ranking, width)
        lines = render_table(
            [titles[column] for column in shown],
            [[row[column] for column in shown] for row in texts],
            [any(isinstance(row[column], float) for row in self.rows) for column in shown],
            width,
        )
        count = f"{len(self.rows):,} runs"
        if len(self.rows) > NUM_SHOWN:
            count = f"the first {NUM_SHOWN} of {count}"
        counts = [f"{count}; {self.constant} settings are the same in all"]
        if hidden := len(self.columns) - len(shown):
            why = "" if width is None else " do not fit"
            counts.append(f"{hidden} more columns{why}: --wide shows them")
        parts = [part.to_text(width) for part in (self.seeds, self.images) if part is not None]
        return "\n".join([*self.notes, *lines, *counts, *(f"\n{part}" for part in parts)])

    def to_csv(self) -> str:
        """Return the table as CSV, numbers in full."""
        output = io.StringIO()
        writer = csv.writer(output, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_plain(cell) for cell in row] for row in self.rows)
        return output.getvalue()

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        table = markdown_table(self.columns, self.texts())
        parts = [part.to_markdown() for part in (self.seeds, self.images) if part is not None]
        return "\n".join([table, *parts])

    def write(self, output_dir: Path) -> tuple[Path, ...]:
        """Write `compare.csv`, `.md`, `.html` and, where predictions were compared, `images.csv`.

        Returns:
            Their paths.

        Raises:
            TrackingError: the folder cannot be written.
        """
        files = {
            "compare.csv": self.to_csv(),
            "compare.md": self.to_markdown(),
            "compare.html": self.to_html(),
        }
        if self.images is not None:
            files["images.csv"] = self.images.to_csv()
        return write_files(output_dir, files)

    def to_html(self) -> str:
        """Return a page that opens without a network."""
        from harness.analysis.charts import estimates_chart
        from harness.analysis.page import MOST_ROWS, Part, render_page

        order = [self.columns.index(name) for name in self.ranking if name not in self.minor]
        rows = [[row[place] for place in order] for row in self.texts()]
        counts = f"{len(rows):,} runs; {self.constant} settings are the same in all"
        if self.minor:
            counts += f"; {len(self.minor)} more results are in compare.csv"
        more = f"the first {MOST_ROWS} of {len(rows):,} runs; compare.csv has all"
        parts = [
            Part(
                "Runs",
                [*self.notes, counts],
                [self.columns[place] for place in order],
                rows[:MOST_ROWS],
                note=more if len(rows) > MOST_ROWS else "",
            )
        ]
        if (seeds := self.seeds) is not None:
            chart = estimates_chart(seeds.metric, seeds.estimates)
            parts.append(Part(f"{seeds.metric} over seeds", seeds.sentences(), *seeds.table(), figure=chart))
        if self.images is not None:
            parts += image_sections(self.images, self.discordant)
        return render_page("Comparison of runs", self.answer(), parts)

    def answer(self) -> str:
        """Return the sentence that a reader wants first."""
        if self.seeds is not None and self.seeds.findings:
            return self.seeds.findings[0][1]
        if self.images is not None:
            return self.images.sentences()[0][1]
        return f"{len(self.rows):,} runs, a seed each: which configuration is better, single runs cannot show"

    def texts(self) -> list[list[str]]:
        """Return the cells of every row as people read them."""
        return [
            [_text(column, cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows
        ]


def _fitting(
    titles: Sequence[str], rows: Sequence[Sequence[str]], ranking: Sequence[int], width: int
) -> list[int]:
    """Return which columns to show side by side within a width, in the order of the table.

    Args:
        ranking: the columns, the most important first; the first is shown in any case.
    """
    room, chosen = width + GAP, list[int]()
    for column in ranking:
        cells = [*titles[column].split("\n"), *(row[column] for row in rows)]
        needed = GAP + min(MAX_CELL, max(map(cell_len, cells)))
        if needed <= room or not chosen:
            chosen.append(column)
            room -= needed
    return sorted(chosen)


def _short_titles(names: Sequence[str]) -> list[str]:
    """Return titles broken into lines; a path is shortened to its last part if that is unique."""
    return [re.sub(r"[ _/.]", "\n", title) for title in short_names(names)]


def render_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], are_numbers: Sequence[bool], width: int | None
) -> list[str]:
    """Return the lines of a table; without a width, it is as wide as it needs to be."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, is_number in zip(titles, are_numbers, strict=True):
        table.add_column(
            title,
            justify="right" if is_number else "left",
            overflow="ellipsis",
            no_wrap=True,
            max_width=None if width is None else MAX_CELL,
        )
    for row in rows:
        table.add_row(*(cell.replace("\n", " ") for cell in row))
    output = io.StringIO()
    widest = [
        max((cell_len(cell) for cell in column), default=0) for column in zip(titles, *rows, strict=True)
    ]
    console = Console(
        file=output,
        width=width or sum(widest) + GAP * len(widest),
        color_system=None,
        markup=False,
        emoji=False,
    )
    console.print(table)
    return [line.rstrip() for line in output.getvalue().splitlines()]


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
