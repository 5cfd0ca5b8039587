"""Every error that the harness raises on purpose, and how errors and names are put in one line.

HarnessError                 a user's mistake, or a fault outside of the program: one line, exit code 2
├── ConfigError              a key, group, value or combination of values that makes no sense
├── DataError                images that are missing, damaged or unusable
│   └── DownloadError        the data set is neither on disk nor reachable
├── ModelError               a model that cannot be built, loaded or frozen as asked
│   ├── ImageSizeError       images of a size that the model rejects
│   └── BatchSizeError       batches too small for the model's batch norms
├── CheckpointError          a checkpoint that is missing, damaged or of another program
│   ├── DamagedCheckpointError  its bytes are not those that were written
│   └── DiskFullError           it does not fit on the disk: once there is room, the run can be resumed
├── DivergedError            the loss became NaN or infinite: such a trial is infeasible, not failed
├── TrackingError            the run store is unwritable, unreachable, or lacks the run asked for
│   └── NoSuchRunError       the run store answers, but does not hold the run
├── SweepError               a sweep that differs from its namesake, is being run already, or keeps failing
│   └── StorageError         the database of sweeps does not answer: what was running can be resumed
├── RerunError               a recorded run that cannot be trained again as it was
└── ExportError              a bundle that cannot be written, or fails its parity check

Anything else that surfaces is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Sequence

from harness.credentials import shown

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError: a full disk, a quota, a limit on files
MOST_SHOWN = 24  # valid words that a message lists
NAMES_SHOWN = 5  # of anything else


class HarnessError(Exception):
    """A fault with a one-line message that names what is wrong and how to mend it; it shows no password."""

    def __str__(self) -> str:
        return shown(super().__str__())


class ConfigError(HarnessError):
    """A key, group, value or combination of values that makes no sense."""


class DataError(HarnessError):
    """Images that are missing, damaged or unusable."""


class DownloadError(DataError):
    """The data set is neither on disk nor reachable."""


class ModelError(HarnessError):
    """A model that cannot be built, loaded or frozen as asked."""


class ImageSizeError(ModelError):
    """Images of a size that the model rejects."""


class BatchSizeError(ModelError):
    """Batches too small for the model's batch norms."""


class CheckpointError(HarnessError):
    """A checkpoint that is missing, damaged or of another program."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose bytes are not those that were written."""


class DiskFullError(CheckpointError):
    """A checkpoint that does not fit on the disk; once there is room, the run can be resumed."""


class DivergedError(HarnessError):
    """The loss became NaN or infinite."""


class TrackingError(HarnessError):
    """The run store is unwritable, unreachable, or lacks the run asked for."""


class NoSuchRunError(TrackingError):
    """The run store answers but does not hold the run, so trying again does not help."""


class SweepError(HarnessError):
    """A sweep that differs from its namesake, is being run already, or keeps failing."""


class StorageError(SweepError):
    """The database of sweeps does not answer; what was running can be resumed."""


class RerunError(HarnessError):
    """A recorded run that cannot be trained again as it was: its code, data or device are not at hand."""


class ExportError(HarnessError):
    """A bundle that cannot be written, or fails its parity check."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without passwords, or its type where it has none."""
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0])


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then the error that it was raised from or while handling, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def type_and_first_line(error: BaseException) -> str:
    """Return ``RuntimeError: the first line of its message``, without passwords."""
    line, kind = first_line(error), type(error).__name__
    return line if line == kind else f"{kind}: {line}"


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the nearest known words, else the list of them all."""
    known = sorted(known)
    by_lower = {name.lower(): name for name in known}
    lower = word.lower()
    fitting = {key for key in by_lower if lower and key.startswith(lower)}
    fitting |= set(difflib.get_close_matches(lower, by_lower, n=count, cutoff=0.6))
    near = difflib.get_close_matches(lower, sorted(fitting), n=count, cutoff=0.0)  # the most alike first
    if near:
        return "; did you mean " + " or ".join(repr(by_lower[key]) for key in near) + "?"
    return f"; valid here: {first_few(known, MOST_SHOWN)}" if known else ""


def first_few(names: Sequence[str], shown: int = NAMES_SHOWN) -> str:
    """Return the first few names, and how many more there are: `a, b, c and 12 more`."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def one_line(text: str, width: int = 120) -> str:
    """Return any text in one printable line, cut where it is long."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= width else line[: width - 1] + "…"
