"""Names of files and classes as text that can be printed and recorded, whatever the disk calls them."""

from __future__ import annotations

import os
import unicodedata

ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of surrogate pairs, line ends
TURNING = frozenset(
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # change the direction of a line
SHOWN = 5


def printable(name: str) -> str:
    """Return a name as valid text on one line, in Unicode's normal form C: equal letters are equal text.

    Bytes that are no UTF-8, and characters that would break a line or turn it round, become escapes.
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
    if unicodedata.category(character) in ESCAPED or character in TURNING:
        return character.encode("unicode_escape", errors="surrogatepass").decode("ascii")
    return character


def some(names: list[str], shown: int = SHOWN) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
