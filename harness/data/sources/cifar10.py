"""Loads CIFAR-10 from any of its published forms, always as exactly the same arrays.

The content of a copy is compared with the digests below, so that an altered or truncated copy is refused.
The forms differ in the order of the images, so these are sorted by the hash of their pixels.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from filelock import FileLock

from harness.data.decoded_cache import (
    DecodedSet,
    Description,
    PartName,
    content_digest,
    create_images,
    finish_part,
    hash_images,
    load_or_build,
)
from harness.data.sources import cifar10_files as files
from harness.data.sources.cifar10_download import download
from harness.errors import DownloadError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# `content_digest` of the 50,000 and the 10,000 images. The images that they were taken from have the channel
# means 0.49139968, 0.48215841, 0.44653091 and deviations 0.24703223, 0.24348513, 0.26158784.
CONTENT_DIGESTS: dict[PartName, str] = {
    "train": "af69a6c12769f03b01e344d02658e1f92ce393706a0b01ae8dbe72966c5f7c33",
    "test": "5ccaadab91eb2ff51c6a444c87ec70a1de453c139db6bb4a8a8c1c6de36bee70",
}


def load(data_dir: Path, cache_dir: Path, may_download: bool) -> DecodedSet:
    """Return CIFAR-10 from the decoded cache, from files under `data_dir`, or from a download into it.

    Raises:
        DataError: If the files at hand are damaged or not CIFAR-10.
        DownloadError: If there are none, and they cannot be (or may not be) downloaded.
    """
    return load_or_build(cache_dir, "cifar10", lambda staging: _build(staging, data_dir, may_download))


def _build(staging: Path, data_dir: Path, may_download: bool) -> Description:
    copy, arrays = _obtain(data_dir, may_download)
    for part, (images, labels) in arrays.items():
        on_disk = create_images(staging, part, images.shape)
        on_disk[:] = images
        finish_part(staging, part, on_disk, labels)
    return Description("cifar10", CLASS_NAMES, f"CIFAR-10 ({copy.layout}) from {copy.path}")


def _obtain(data_dir: Path, may_download: bool) -> tuple[files.Copy, dict[PartName, files.Labelled]]:
    found = files.find(data_dir)
    if found is not None:
        return found, read_canonical(found)
    if not may_download:
        raise DownloadError(
            f"no CIFAR-10 under {data_dir}, and downloads are off; put {files.ARCHIVE_NAME} there, "
            "or allow them (data.download=true, no HARNESS_OFFLINE)"
        )
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / ".cifar10.lock"):
            found = files.find(data_dir)  # another process may have been faster
            return (found, read_canonical(found)) if found else download(data_dir, read_canonical)
    except OSError as error:
        raise DownloadError(
            f"cannot write CIFAR-10 to {data_dir}: {error}; set data.dir (DATA_DIR)"
        ) from error


def read_canonical(copy: files.Copy) -> dict[PartName, files.Labelled]:
    """Read a copy, make sure that it is CIFAR-10, and sort it by the hash of the pixels."""
    canonical: dict[PartName, files.Labelled] = {}
    for part, (images, labels) in files.read(copy).items():
        hashes = hash_images(images)
        if content_digest(hashes, labels) != CONTENT_DIGESTS[part]:
            raise files.damaged(copy.path, f"its {len(images)} {part} images are not the published ones")
        order = np.lexsort((labels, *hashes.T[::-1]))
        canonical[part] = images[order], labels[order]
    return canonical
