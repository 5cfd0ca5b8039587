"""Classifies an exception in a trial as infeasible, failed or lost; see `Verdict`.

`attempt.py` calls `judge`, and ends the trial accordingly.
"""

from __future__ import annotations

import errno
from typing import Literal

from harness.errors import (
    BatchSizeError,
    DiskFullError,
    DivergedError,
    HarnessError,
    ImageSizeError,
    StorageError,
    TrackingError,
    causes,
    type_and_first_line,
)

# infeasible: the configuration can have no score; the trial ends, and the sampler learns to avoid it.
# failed: an error that says nothing about the configuration; the trial ends, and the sampler ignores it.
# lost: the machine's fault, not the trial's; the trial is started again.
Verdict = Literal["infeasible", "failed", "lost"]

# Errors of the machine, not of the trial: the trial stays resumable, and the study is told nothing.
RESUMABLE_ERRORS = (StorageError, TrackingError, DiskFullError)

OUT_OF_MEMORY_TEXTS = (  # in the messages of plain RuntimeErrors
    "can't allocate memory",  # torch's allocator on CPUs
    "out of memory",
    "not enough memory",
    "STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN
)
LOST_WORKER_TEXTS = ("exited unexpectedly", "is killed by signal")


class InfeasibleError(HarnessError):
    """It is known without training that the trial can have no score."""


def judge(error: Exception) -> tuple[Verdict, str]:
    """Return the verdict on an exception, and the reason in one line."""
    if is_lost_worker(error):
        return "lost", type_and_first_line(error)
    if is_out_of_memory(error):
        return "infeasible", f"out of memory ({type_and_first_line(error)})"
    if isinstance(error, BatchSizeError | DivergedError | ImageSizeError | InfeasibleError):
        return "infeasible", str(error)
    return "failed", str(error) if isinstance(error, HarnessError) else type_and_first_line(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, of the device or of the host."""
    return any(_says_out_of_memory(cause) for cause in causes(error))


def is_lost_worker(error: BaseException) -> bool:
    """Return whether a process that loads data has died."""
    return any(
        "DataLoader worker" in str(cause) and any(text in str(cause) for text in LOST_WORKER_TEXTS)
        for cause in causes(error)
    )


def _says_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
