"""Sets up logging to stderr: the harness's messages without a prefix; from libraries, warnings and up."""

from __future__ import annotations

import io
import logging
import sys

from harness.credentials import shown


def show_messages() -> None:
    """Send the harness's messages to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_WithoutPasswords("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("harness").setLevel(logging.INFO)


def never_fail_to_print() -> None:
    """Print characters that the encoding of stdout or stderr lacks (LANG=C) as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _WithoutPasswords(logging.Formatter):
    """Hides the passwords of addresses, also in what libraries say and in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))
