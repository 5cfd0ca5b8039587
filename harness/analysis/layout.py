"""Text for people: Markdown tables, sentences wrapped to a terminal. `table.py` and the reports call it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "".join(f"{_markdown_row(row)}\n" for row in (head, ["---"] * len(head), *rows))


def wrapped(sentences: Sequence[str], width: int | None) -> list[str]:
    """Return sentences as lines that fit a width, continued lines indented; without a width, as they are."""
    if width is None:
        return list(sentences)
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(sentence, width, subsequent_indent="  ", break_on_hyphens=False)
    ]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
