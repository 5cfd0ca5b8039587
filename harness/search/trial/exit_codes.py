"""The exit codes of a trial's process, which its executor passes on and the scheduler reads.

0 says that nothing is left to do: the trial has ended, or belongs to another process by now.
"""

import os
import signal

EXIT_STOPPED = 128 + signal.SIGTERM  # asked to stop; the trial can be resumed
EXIT_UNAVAILABLE = os.EX_TEMPFAIL  # a database does not answer, or the disk is full; it can be resumed
EXIT_RESTART = os.EX_OSERR  # something beneath the trial died (a data loader's process); start it again
