"""Downloads CIFAR-10 from its own site or, if that fails, from the Hugging Face hub.

`cifar10.py` calls `download`. A copy is moved into the data folder only after it has been read and verified.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from harness.data.sources.cifar10_files import ARCHIVE_NAME, PARQUET_FOLDER, PARTS, Copy
from harness.errors import DataError, DownloadError

ARCHIVE_URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE_NAME}"
ARCHIVE_HASH = "md5:c58f30108f718f92721af3b95e74349a"
HUB_DATASET = "uoft-cs/cifar10"
TIMEOUTS_S = (5, 30)  # to connect, and between two packets

Content = TypeVar("Content")
log = logging.getLogger(__name__)


def download(data_dir: Path, read: Callable[[Copy], Content]) -> tuple[Copy, Content]:
    """Download a copy into `data_dir`; return it with the result of `read`.

    Args:
        read: Reads and verifies a copy; one that it refuses (DataError) is not kept.

    Raises:
        DownloadError: If no origin can be reached, or what they send is not CIFAR-10.
    """
    faults = []
    origins = {"www.cs.toronto.edu": _fetch_archive, "the Hugging Face hub": _fetch_parquet}
    log.info("downloading CIFAR-10 to %s, from %s", data_dir, " or else ".join(origins))
    for origin, fetch in origins.items():
        try:
            with tempfile.TemporaryDirectory(dir=data_dir, prefix=".cifar10-") as staging:
                fetched = fetch(Path(staging))
                content = read(fetched)
                return _move_into_place(fetched, Path(staging), data_dir), content
        # requests raises OSErrors, pooch ValueErrors.
        except (OSError, ValueError, DataError) as error:
            log.debug("%s: %s", origin, error)
            faults.append(f"{origin}: {type(error).__name__}")
    raise DownloadError(
        f"no CIFAR-10 under {data_dir}, and it cannot be downloaded ({'; '.join(faults)}); "
        f"put {ARCHIVE_NAME} there, or use data=digits or data=folder"
    )


def _move_into_place(fetched: Copy, staging: Path, data_dir: Path) -> Copy:
    target = data_dir / fetched.path.relative_to(staging)
    target.parent.mkdir(parents=True, exist_ok=True)
    if fetched.layout == "archive":
        fetched.path.replace(target)
        return Copy(target, fetched.layout)
    target.mkdir(exist_ok=True)
    for path in fetched.path.iterdir():
        path.replace(target / path.name)
    return Copy(target, fetched.layout)


def _fetch_archive(staging: Path) -> Copy:
    _retrieve(ARCHIVE_URL, ARCHIVE_HASH, staging / ARCHIVE_NAME)
    return Copy(staging / ARCHIVE_NAME, "archive")


def _fetch_parquet(staging: Path) -> Copy:
    from huggingface_hub import hf_hub_url  # honours HF_ENDPOINT; its own downloader retries for minutes

    folder = staging / PARQUET_FOLDER
    for part in PARTS:
        name = f"{part}-00000-of-00001.parquet"
        url = hf_hub_url(HUB_DATASET, f"{PARQUET_FOLDER.name}/{name}", repo_type="dataset")
        _retrieve(url, None, folder / name)  # verified by its content, which is what has to be right
    return Copy(folder, "parquet")


def _retrieve(url: str, known_hash: str | None, path: Path) -> None:
    import pooch

    pooch.get_logger().setLevel("WARNING")  # its messages would repeat ours
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUTS_S)
    pooch.retrieve(url, known_hash, fname=path.name, path=path.parent, downloader=downloader)
