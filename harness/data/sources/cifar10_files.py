"""Reads CIFAR-10 in each of its published forms: parquet files (Hugging Face), batch files, their archive.

The batches are pickles; they are read by an unpickler that can build arrays and nothing else.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from harness.data.decoded_cache import PartName
from harness.errors import DataError

ARCHIVE_NAME = "cifar-10-python.tar.gz"
BATCHES_NAME = "cifar-10-batches-py"
PARQUET_FOLDER = Path("cifar10") / "plain_text"
PARTS: tuple[PartName, ...] = ("train", "test")
BATCHES: dict[PartName, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
IMAGE_SHAPE = (32, 32, 3)
LARGEST_BATCH = 64 * 2**20  # bytes; the real ones have 31 MB
DECODE_THREADS = 4  # PIL releases the GIL while it decodes
DECODE_CHUNK = 1000  # images

Labelled = tuple[np.ndarray, np.ndarray]  # uint8 (N, 32, 32, 3), int64 (N,)


@dataclass(frozen=True)
class Copy:
    """One copy of CIFAR-10 on disk."""

    path: Path
    layout: Literal["parquet", "batches", "archive"]


def find(data_dir: Path) -> Copy | None:
    """Return the first copy under `data_dir`, or None."""
    if any(next((data_dir / PARQUET_FOLDER).glob(f"{part}*.parquet"), None) for part in PARTS):
        return Copy(data_dir / PARQUET_FOLDER, "parquet")
    if (data_dir / BATCHES_NAME).is_dir():
        return Copy(data_dir / BATCHES_NAME, "batches")
    if (data_dir / ARCHIVE_NAME).is_file():
        return Copy(data_dir / ARCHIVE_NAME, "archive")
    return None


def read(copy: Copy) -> dict[PartName, Labelled]:
    """Decode all images of a copy, in its own order.

    Raises:
        DataError: If the copy is incomplete or damaged.
    """
    match copy.layout:
        case "parquet":
            return {part: _read_parquet(copy.path, part) for part in PARTS}
        case "batches":
            return _join_batches(copy.path, lambda name: (copy.path / name).read_bytes())
        case "archive":
            return _read_archive(copy.path)


def damaged(path: Path, reason: object) -> DataError:
    """Return the error that is raised for a copy that is damaged in any way."""
    first_line = str(reason).partition("\n")[0]
    return DataError(
        f"{path} is truncated, altered or not CIFAR-10 ({first_line}); delete it, then fetch it anew"
    )


# ── the hub's parquet ─────────────────────────────────────────────────────────────────────────────


def _read_parquet(folder: Path, part: PartName) -> Labelled:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(folder.glob(f"{part}*.parquet"))
    if not paths:
        raise damaged(folder, f"there is no {part}*.parquet in it")
    pngs: list[bytes] = []
    labels: list[int] = []
    for path in paths:
        try:
            table = pq.read_table(path, columns=["img", "label"])
            pngs += pa.compute.struct_field(table["img"], "bytes").to_pylist()
            labels += table["label"].to_pylist()
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise damaged(path, error) from error
    try:
        return _decode_pngs(pngs), np.asarray(labels, dtype=np.int64)
    except (OSError, SyntaxError, ValueError, TypeError, zlib.error) as error:  # PIL raises all of these
        raise damaged(folder, f"{part}: {error}") from error


def _decode_pngs(pngs: list[bytes]) -> np.ndarray:
    images = np.empty((len(pngs), *IMAGE_SHAPE), dtype=np.uint8)

    def decode_chunk(start: int) -> None:
        for row in range(start, min(start + DECODE_CHUNK, len(pngs))):
            with Image.open(io.BytesIO(pngs[row]), formats=("PNG",)) as image:
                pixels = np.asarray(image)
            if pixels.shape != IMAGE_SHAPE:
                raise ValueError(f"image {row} has shape {pixels.shape}")
            images[row] = pixels

    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        list(pool.map(decode_chunk, range(0, len(pngs), DECODE_CHUNK)))
    return images


# ── the original batches ──────────────────────────────────────────────────────────────────────────


def _read_archive(path: Path) -> dict[PartName, Labelled]:
    """Read the batches inside the archive; nothing of it is ever extracted."""
    wanted = {name for names in BATCHES.values() for name in names}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                if name in wanted and member.isfile() and member.size <= LARGEST_BATCH:
                    stream = archive.extractfile(member)
                    contents[name] = stream.read() if stream else b""
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error
    return _join_batches(path, contents.__getitem__)


def _join_batches(path: Path, content_of: Callable[[str], bytes]) -> dict[PartName, Labelled]:
    joined: dict[PartName, Labelled] = {}
    for part, names in BATCHES.items():
        batches = [_read_batch(path, name, content_of) for name in names]
        joined[part] = (
            np.concatenate([images for images, _ in batches]),
            np.concatenate([labels for _, labels in batches]),
        )
    return joined


def _read_batch(path: Path, name: str, content_of: Callable[[str], bytes]) -> Labelled:
    try:
        batch = ArrayUnpickler(io.BytesIO(content_of(name)), encoding="bytes").load()
        planes = np.asarray(batch[b"data"], dtype=np.uint8)
        labels = np.asarray(batch[b"labels"], dtype=np.int64)
        images = planes.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
    except Exception as error:  # a damaged pickle can raise anything at all
        raise damaged(path, f"{name}: {error}") from error
    return np.ascontiguousarray(images), labels


class ArrayUnpickler(pickle.Unpickler):
    """Builds dicts, lists, bytes and numpy arrays; refuses every other class or function."""

    _ALLOWED: ClassVar[dict[str, Any]] = {
        "_reconstruct": np.empty(0).__reduce__()[0],  # numpy's own, wherever this version keeps it
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in self._ALLOWED:
            return self._ALLOWED[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
