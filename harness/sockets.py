"""Where Python's helper processes meet: sockets, whose addresses must be short on a Unix system."""

from __future__ import annotations

import tempfile
from multiprocessing import util

LONGEST_ADDRESS = 107  # of a Unix socket on Linux, in bytes; macOS has 103
SOCKET_BELOW = len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # that multiprocessing puts into TMPDIR
SHORT_FOLDER = "/tmp"  # multiprocessing makes a folder of its own below it, for this user alone


def keep_sockets_short() -> None:
    """Let multiprocessing's sockets live in `/tmp` where `TMPDIR` is too long for them.

    To be called before the first helper process is started: multiprocessing chooses its folder once, and the
    processes that it starts inherit the choice. Other temporary files stay in `TMPDIR`.
    """
    if len(tempfile.gettempdir().encode()) + SOCKET_BELOW <= LONGEST_ADDRESS:
        return
    before, tempfile.tempdir = tempfile.tempdir, SHORT_FOLDER
    try:
        util.get_temp_dir()
    finally:
        tempfile.tempdir = before
