"""Starts `multiprocessing`'s fork server, which forks the processes of trials and of image decoding."""

from __future__ import annotations

import tempfile
from multiprocessing import forkserver, util

from harness.signals import held_back

LONGEST_ADDRESS = 107  # of a Unix socket on Linux, in bytes; macOS has 103
SOCKET_BELOW = len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # that multiprocessing puts into TMPDIR
SHORT_FOLDER = "/tmp"  # multiprocessing makes a folder of its own below it, for this user alone


def start_fork_server() -> None:
    """Start the fork server unless it runs already; return without waiting for its imports.

    The server never sees Ctrl-C; a process that is forked from it calls `signals.leave_to_parent`.
    """
    _keep_sockets_short()
    with held_back():
        forkserver.ensure_running()


def _keep_sockets_short() -> None:
    """Let multiprocessing's sockets live in `/tmp` where `TMPDIR` is too long for their addresses.

    multiprocessing chooses its folder once, before the first helper process, and the processes that it starts
    inherit the choice. Other temporary files stay in `TMPDIR`.
    """
    if len(tempfile.gettempdir().encode()) + SOCKET_BELOW <= LONGEST_ADDRESS:
        return
    before, tempfile.tempdir = tempfile.tempdir, SHORT_FOLDER
    try:
        util.get_temp_dir()
    finally:
        tempfile.tempdir = before
