"""`python -m experiments.structure [REVISION or PATH ...]`: counts that describe the code of each tree."""

from __future__ import annotations

import argparse
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.structure.figures import describe
from experiments.structure.frames import frames_to_optimiser

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Print the counts of each tree; without an argument, those of this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="*", default=[str(ROOT)], help="git revisions, or folders")
    for name in parser.parse_args().trees:
        with checked_out(name) as tree:
            frames = frames_to_optimiser(tree)
            figures = {**describe(tree), "frames from sweep to optimiser": f"{len(frames)}"}
            title = "this tree" if tree == ROOT else name
            print(f"{title}\n" + "\n".join(f"  {key:<31} {value}" for key, value in figures.items()))
            print("\n".join(f"    {number:2d} {frame}" for number, frame in enumerate(frames, 1)), flush=True)


@contextmanager
def checked_out(name: str) -> Iterator[Path]:
    """Yield the folder `name`, or a temporary folder with the files of the git revision `name`."""
    if Path(name).is_dir():
        yield Path(name).resolve()
        return
    archive = subprocess.run(["git", "archive", name], cwd=ROOT, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory(prefix="structure-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder).resolve()


if __name__ == "__main__":
    main()
