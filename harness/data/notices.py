"""What a user should know of the images: each line once a process, wherever they are loaded from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)
_told: set[tuple[str, str]] = set()


def tell(lines: Iterable[str], of: str) -> None:
    """Log what was not yet logged of the same thing."""
    for line in lines:
        if not log.disabled and (of, line) not in _told:
            _told.add((of, line))
            log.warning("%s", line)


@contextmanager
def untold() -> Iterator[None]:
    """Log nothing meanwhile, since the caller shows it all."""
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False
