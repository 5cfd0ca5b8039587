"""Small data sets for the tests of this folder."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.data.decoded_cache import content_digest, hash_images
from harness.data.sources import cifar10
from harness.data.splits import ImageArrays, ImageSplits

Labelled = tuple[np.ndarray, np.ndarray]
SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def shared_cifar10() -> Path:
    if not (SHARED_DATA / "cifar10" / "plain_text").is_dir():
        pytest.skip("the real CIFAR-10 is not beside the project (../shared/data)")
    return SHARED_DATA


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# ── a miniature CIFAR-10 ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mini_cifar10(monkeypatch: pytest.MonkeyPatch) -> dict[str, Labelled]:
    """100 + 20 random images that the module takes for the real thing."""
    rng = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 100), ("test", 20)):
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(count, dtype=np.int64) % 10
        parts[part] = images, labels
        monkeypatch.setitem(cifar10.CONTENT_DIGESTS, part, content_digest(hash_images(images), labels))
    return parts


def write_parquet(data_dir: Path, parts: dict[str, Labelled]) -> Path:
    folder = data_dir / "cifar10" / "plain_text"
    folder.mkdir(parents=True)
    for part, (images, labels) in parts.items():
        rows = [{"bytes": png_bytes(image), "path": None} for image in images]
        path = folder / f"{part}-00000-of-00001.parquet"
        pq.write_table(pa.table({"img": rows, "label": labels}), path)
    return folder


def png_bytes(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def batch_pickles(parts: dict[str, Labelled]) -> dict[str, bytes]:
    """Pickle the images as the original has them: planes, byte-string keys, five batches and one."""
    train_images, train_labels = parts["train"]
    chunks = {f"data_batch_{k + 1}": slice(k * 20, (k + 1) * 20) for k in range(5)}
    contents = {name: _batch(train_images[rows], train_labels[rows]) for name, rows in chunks.items()}
    return {**contents, "test_batch": _batch(*parts["test"])}


def _batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    return pickle.dumps({b"data": planes, b"labels": labels.tolist(), b"batch_label": b"x"}, protocol=3)


def write_archive(path: Path, contents: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


# ── trees of files, and splits in memory ──────────────────────────────────────────────────────────


@pytest.fixture
def image_tree(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes ``class folder → number of images`` under a new root."""

    def write(counts: dict[str, int], size: tuple[int, int] = (12, 10)) -> Path:
        root = tmp_path / "tree"
        rng = np.random.default_rng(len(counts))
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / f"{number}.png")
        return root

    return write


@pytest.fixture
def splits() -> ImageSplits:
    """41 + 12 images of 8x8 pixels, whose first pixel tells the row."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(60)
    labels = np.arange(60, dtype=np.int64) % 3
    train, val = rng.permutation(60)[:53][:41], np.arange(48, 60)
    grey = (0.5, 0.5, 0.5)
    return ImageSplits(
        name="mini",
        train=ImageArrays(images, labels[train], train),
        val=ImageArrays(images, labels[val], val),
        class_names=("a", "b", "c"),
        digest="0" * 64,
        row_digest="0" * 64,
        source="a test",
        mean=grey,
        std=grey,
    )
