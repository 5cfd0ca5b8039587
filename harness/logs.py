"""How the program talks while it works: its own messages, bare; of the libraries' only warnings."""

from __future__ import annotations

import logging


def show_messages() -> None:
    """Send the harness's messages to stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("harness").setLevel(logging.INFO)
