"""Writes and verifies a bundle's `SHA256SUMS`, in the format of `sha256sum --check`."""

from __future__ import annotations

from pathlib import Path

from harness.errors import ExportError
from harness.export.manifest import SUMS_FILE
from harness.files import sha256_of


def write_checksums(folder: Path) -> None:
    """Write `SHA256SUMS` over every other file of `folder`."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS_FILE)
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def verify_checksums(folder: Path, required: tuple[str, ...]) -> None:
    """Check that every listed file is there and unaltered, and that every required one is listed.

    Raises:
        ExportError: the folder is no bundle, or a file is missing, altered or not listed.
    """
    sums = _read_checksums(folder)
    for name in (*sums, *(name for name in required if name not in sums)):
        fault = _fault(folder / name, sums.get(name))
        if fault:
            raise ExportError(f"{folder / name} {fault}: copy the bundle anew or export it again")


def _fault(path: Path, expected: str | None) -> str | None:
    if expected is None:
        return f"is not listed in {SUMS_FILE}"
    try:
        return None if sha256_of(path) == expected else f"is damaged (it does not match {SUMS_FILE})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _read_checksums(folder: Path) -> dict[str, str]:
    try:
        text = (folder / SUMS_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ExportError(
            f"{folder} is not a bundle (no {SUMS_FILE}): name a folder that export has written"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{folder / SUMS_FILE} cannot be read ({error}): export the bundle again") from None
    pairs = [line.split("  ", 1) for line in text.splitlines()]
    if not all(len(pair) == 2 and Path(pair[1]).name == pair[1] for pair in pairs):
        raise ExportError(f"{folder / SUMS_FILE} is damaged: copy the bundle anew or export it again")
    return {name: digest for digest, name in pairs}
