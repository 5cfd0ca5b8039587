"""Text for people: tables in Markdown, sentences wrapped to a terminal, percentages, ranges; files of it.

`table.py`, `paired.py`, `discordant.py` and `sweeps.py` call it, the galleries of `harness.pictures`, and
what `harness.search` says of compute.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harness.errors import TrackingError


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "".join(f"{_markdown_row(row)}\n" for row in (head, ["---"] * len(head), *rows))


def cell(text: str) -> str:
    """Return a class name that cannot break a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("<", "&lt;")


def wrapped(sentences: Sequence[str], width: int | None) -> list[str]:
    """Return sentences as lines that fit a width, continued lines indented; without a width, as they are."""
    if width is None:
        return list(sentences)
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(sentence, width, subsequent_indent="  ", break_on_hyphens=False)
    ]


def without_tta(metrics: Mapping[str, float], split: str) -> str:
    """Return accuracy or mAP without test-time augmentation, to follow the one with it; "" if it has none."""
    plain = metrics.get(f"{split}/accuracy_no_tta", metrics.get(f"{split}/mAP_no_tta"))
    return "" if plain is None else f" ({plain:.4f} without test-time augmentation)"


def percent(share: float) -> str:
    """Return a share as a percentage that never claims to be sure: "93 %", "> 99 %", "< 1 %".

    Its spaces are non-breaking.
    """
    if 0.995 <= share < 1.0:
        text = "> 99 %"
    elif 0.0 < share < 0.005:
        text = "< 1 %"
    else:
        text = f"{100 * share:.0f} %"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def span(values: Iterable[float], form: str) -> str:
    """Return the least and the greatest of some numbers, "2 to 5"; one of them where both read the same.

    Args:
        form: of each number, such as ",.0f".
    """
    known = sorted(values)
    low, high = format(known[0], form), format(known[-1], form)
    return low if low == high else f"{low} to {high}"


def write_files(output_dir: Path, files: Mapping[str, str]) -> tuple[Path, ...]:
    """Write texts into a folder, which is made if need be.

    Raises:
        TrackingError: the folder cannot be written.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (output_dir / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise TrackingError(
            f"{output_dir} cannot be written ({error.strerror}): choose another with --output"
        ) from error
    return tuple(output_dir / name for name in files)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
