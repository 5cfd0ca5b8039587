"""How the program talks while it works: its own messages, bare; of the libraries' only warnings."""

from __future__ import annotations

import io
import logging
import sys


def show_messages() -> None:
    """Send the harness's messages to stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("harness").setLevel(logging.INFO)


def never_fail_to_print() -> None:
    """Have what a terminal's encoding lacks appear as escapes (LANG=C, PYTHONIOENCODING=latin-1)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
