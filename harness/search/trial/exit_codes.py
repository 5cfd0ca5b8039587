"""The exit codes of a trial's process, which its executor passes on and the scheduler reads.

0 means that nothing is left to do: the trial has ended, or another process has it by now.
"""

import os
import signal

EXIT_STOPPED = 128 + signal.SIGTERM  # asked to stop; the trial can be resumed
EXIT_UNAVAILABLE = os.EX_TEMPFAIL  # no database, disk space or fork server; the trial can be resumed
EXIT_RESTART = os.EX_OSERR  # a process that loads data for the trial died; start the trial again
