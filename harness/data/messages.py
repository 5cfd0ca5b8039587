"""Parts of messages about images: printable names, short lists of names, warnings that are logged only once.

Everything in this folder that reports on files uses them, and so does prediction. The names of files and
classes come from the disk, which allows any bytes; terminals, YAML and databases do not.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of surrogate pairs, line ends
# Characters that change the direction of the rest of a line.
DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

log = logging.getLogger(__name__)
_warned: set[tuple[str, str]] = set()


# ── names ─────────────────────────────────────────────────────────────────────────────────────────


def printable(name: str) -> str:
    """Return a name as valid text on one line, in Unicode's normal form C: equal letters are equal text.

    Bytes that are not UTF-8, line breaks and marks that change a line's direction become escapes.
    """
    text = os.fsencode(name).decode("utf-8", errors="backslashreplace") if _is_from_disk(name) else name
    return unicodedata.normalize("NFC", "".join(map(_escape, text)))


def _is_from_disk(name: str) -> bool:
    """Tell whether the name can be turned back into the bytes that the disk holds."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _escape(character: str) -> str:
    if unicodedata.category(character) in ESCAPED or character in DIRECTION_MARKS:
        return character.encode("unicode_escape", errors="surrogatepass").decode("ascii")
    return character


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 image`, `1,024 images`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


# ── warnings ──────────────────────────────────────────────────────────────────────────────────────


def warn_once(lines: Iterable[str], of: str) -> None:
    """Log each line as a warning, unless this process has logged it before about the same data.

    Args:
        of: identifies the data, such as its folder or its digest.
    """
    for line in lines:
        if not log.disabled and (of, line) not in _warned:
            _warned.add((of, line))
            log.warning("%s", line)


@contextmanager
def muted_warnings() -> Iterator[None]:
    """Let `warn_once` log nothing within the block, because the caller shows the same lines itself."""
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False
