"""Reads the CSV file of `data=multilabel`: which labels each image of a folder has, and its split if given.

    file,cat,dog,split            file,labels
    a/1.png,1,0,train             a/1.png,cat
    a/2.png,1,1,test              a/2.png,cat|dog

Either each label has a column of 0 and 1, or one column lists the labels. `folder.py` calls
`read_labelled_layout` where it calls `read_layout` for class folders. docs/images.md tells users the format.
"""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.config.schema import MultiLabelData
from harness.data.decoded_cache import PartName
from harness.data.messages import counted, printable
from harness.data.sources.layout import SPELLINGS, ImageFile, Layout, part_named, unused_patterns
from harness.data.sources.scan import scan
from harness.errors import DataError, did_you_mean, first_few

FILE_COLUMNS = ("file", "filename", "fname", "image", "path")
LIST_COLUMNS = ("labels", "tags")
SPLIT_COLUMN = "split"
SEPARATORS = ("|", ";", ",")
ZERO_OR_ONE = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


@dataclass(frozen=True)
class _Row:
    """A line of the file: its number, counted from 1 with the header, and its cells by column."""

    line: int
    cells: Mapping[str, str]


def read_labelled_layout(root: Path, config: MultiLabelData) -> Layout:
    """Return the images of a folder with the labels that the CSV file gives them.

    Raises:
        DataError: If there is no folder or no file, if the file cannot be read or is empty, has not the
            columns that were asked for or other values than it may have, or if not every row has an image
            and every image one row.
    """
    if not root.is_dir():
        raise DataError(
            f"there is no folder {printable(str(root))}; set data.dir (DATA_DIR) to a folder of images"
        )
    path = root / Path(config.labels_csv).expanduser()
    where = printable(str(path))
    columns, rows = _read_table(path, where)
    file_column = _file_column(columns, config.file_column, where)
    split_column = SPLIT_COLUMN if SPLIT_COLUMN in columns else None
    others = [name for name in columns if name not in (file_column, split_column)]
    label_columns, is_list = _label_columns(others, config.label_columns, where)
    if is_list:
        names, targets, how = _from_lists(rows, label_columns[0], config.label_separator)
    else:
        names, targets = tuple(map(printable, label_columns)), _from_columns(rows, label_columns, where)
        how = "columns of 0 and 1"
    if len(names) < 2:
        raise DataError(
            f"{where} has {counted(len(names), 'label')}{_in_brackets(names)}: two are the least; "
            "images of one class each are data=folder"
        )
    top, passed_over = scan(root, config.include, config.exclude)
    row_of = _rows_of_images(rows, file_column, list(top.all_images()), where)
    files = tuple(
        ImageFile(path, _part(rows[position], split_column, where), class_name="", class_folder="")
        for path, position in row_of.items()
    )
    if not any(file.part == "train" for file in files):
        raise DataError(f"{where}: no row's {SPLIT_COLUMN} is train; there is nothing to train on")
    unused = [name for name in others if name not in label_columns]
    notices = [f"{where}: columns that are not used: {first_few(list(map(printable, unused)))}"] * bool(
        unused
    )
    given = f", splits by its column {SPLIT_COLUMN!r}" if split_column else ", split by the harness"
    return Layout(
        root,
        files,
        names,
        tuple(one for one in passed_over if root / one.path != path),
        f"labels from {how} of {where}{given}",
        (*notices, *unused_patterns(config.exclude, passed_over)),
        {path: targets[position] for path, position in row_of.items()},
    )


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


def _read_table(path: Path, where: str) -> tuple[list[str], list[_Row]]:
    """Return the columns' names and the rows."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except FileNotFoundError:
        raise DataError(
            f"there is no file {where}: set data.labels_csv to the labels' CSV file, relative to data.dir"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {where}: {error.strerror}; check data.labels_csv") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where} is no CSV file in UTF-8 ({error}): save it as one") from None
    if not lines:
        seen = "nothing" if not any(header) else f"only the line {first_few(header)}"
        raise DataError(f"{where} holds {seen}: a header is needed, and a row for each image")
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(
            f"{where} has several columns called {first_few(list(map(repr, repeated)))}: rename them"
        )
    for line, cells in lines:
        if len(cells) != len(header):
            raise DataError(
                f"{where}, line {line}: {counted(len(cells), 'value')} for {counted(len(header), 'column')}; "
                "correct it (a value with a comma in it needs quotes)"
            )
    return header, [_Row(line, dict(zip(header, cells, strict=True))) for line, cells in lines]


def _file_column(columns: Sequence[str], asked: str | None, where: str) -> str:
    if asked is not None:
        if asked not in columns:
            raise DataError(
                f"{where} has no column {asked!r} (data.file_column){did_you_mean(asked, columns)}"
            )
        return asked
    found = [name for name in columns if name.lower() in FILE_COLUMNS]
    if len(found) != 1:
        seen = (
            f"columns {' and '.join(map(repr, found))}" if found else f"the columns {first_few([*columns])}"
        )
        raise DataError(f"{where} has {seen}: name the one of the files by data.file_column")
    return found[0]


def _label_columns(others: Sequence[str], asked: Sequence[str], where: str) -> tuple[list[str], bool]:
    """Return the columns of the labels, and whether it is one column that lists an image's labels."""
    for name in asked:
        if name not in others:
            raise DataError(
                f"{where} has no column {name!r} (data.label_columns){did_you_mean(name, others)}"
            )
    if asked:
        return list(asked), len(asked) == 1
    if lists := [name for name in others if name.lower() in LIST_COLUMNS]:
        return lists[:1], True
    if not others:
        raise DataError(
            f"{where} has no column of labels: add a column of 0 and 1 for each, or one that lists them"
        )
    return list(others), False


def _from_columns(rows: Sequence[_Row], columns: Sequence[str], where: str) -> np.ndarray:
    """Return the labels of columns of 0 and 1: uint8 (N, K)."""
    for row in rows:
        for name in columns:
            if row.cells[name] not in ZERO_OR_ONE:
                raise DataError(
                    f"{where}, line {row.line}: {printable(name)} is {printable(row.cells[name])!r} in place "
                    "of 0 or 1; correct it, or name the columns of the labels by data.label_columns"
                )
    return np.array([[ZERO_OR_ONE[row.cells[name]] for name in columns] for row in rows], dtype=np.uint8)


def _from_lists(
    rows: Sequence[_Row], column: str, separator: str | None
) -> tuple[tuple[str, ...], np.ndarray, str]:
    """Return the labels' names in the order of the alphabet, uint8 (N, K), and how they were found."""
    cells = [row.cells[column] for row in rows]
    if separator is None:
        separator = next((one for one in SEPARATORS if any(one in cell for cell in cells)), None)
    lists = [[name.strip() for name in cell.split(separator)] for cell in cells]  # None splits at blanks
    lists = [[printable(name) for name in names if name] for names in lists]
    found = sorted({name for names in lists for name in names})
    column_of = {name: position for position, name in enumerate(found)}
    targets = np.zeros((len(rows), len(found)), dtype=np.uint8)
    for row, names in enumerate(lists):
        targets[row, [column_of[name] for name in names]] = 1
    between = "blanks" if separator is None else repr(separator)
    return tuple(found), targets, f"the lists, separated by {between}, in column {column!r}"


# ── rows and images ───────────────────────────────────────────────────────────────────────────────


def _rows_of_images(
    rows: Sequence[_Row], file_column: str, images: Sequence[str], where: str
) -> dict[str, int]:
    """Return the position of each image's row, by its path, in the order of the images."""
    path_of = {printable(path): path for path in images}
    position_of: dict[str, int] = {}
    for position, row in enumerate(rows):
        name = printable(posixpath.normpath(row.cells[file_column].replace("\\", "/")))
        if name in position_of:
            earlier = rows[position_of[name]].line
            raise DataError(f"{where}, line {row.line}: {name} has a row already, line {earlier}; remove one")
        position_of[name] = position
    unknown = [name for name in position_of if name not in path_of]
    if unknown:
        raise DataError(
            f"{counted(len(unknown), 'file of', 'files of')} {where} not found among the "
            f"{counted(len(images), 'image')} of data.dir: {first_few(unknown, 3)}; correct the rows (paths "
            "are relative to data.dir, with their suffix), or data.include and data.exclude"
        )
    if missing := [name for name in path_of if name not in position_of]:
        raise DataError(
            f"{counted(len(missing), 'image')} of data.dir without a row in {where}: "
            f"{first_few(missing, 3)}; add the rows, or leave the images out by data.exclude"
        )
    return {path: position_of[name] for name, path in path_of.items()}


def _part(row: _Row, split_column: str | None, where: str) -> PartName:
    if split_column is None:
        return "train"
    if (part := part_named(row.cells[split_column])) is None:
        raise DataError(
            f"{where}, line {row.line}: {SPLIT_COLUMN} is {printable(row.cells[split_column])!r}; "
            f"use {', '.join(SPELLINGS)}, or rename the column"
        )
    return part


def _in_brackets(names: Sequence[str]) -> str:
    return f" ({', '.join(map(repr, names))})" if names else ""
