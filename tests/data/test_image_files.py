"""Images beyond the memory: what comes out of their files equals what comes out of the decoded array."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from harness.config.schema import AugmentConfig, FolderData
from harness.data import load_splits
from harness.data.datamodule import ImageDataModule, eval_batches
from harness.data.decoding.image_files import ImageFiles
from harness.data.held_out import load_test
from harness.data.sources import folder
from harness.errors import DataError

Tree = Callable[..., Path]


def config_of(root: Path, *, in_memory: bool, num_workers: int = 0, **changes: object) -> FolderData:
    return FolderData(
        dir=str(root),
        decode_size=16,
        max_memory_share=0.5 if in_memory else 0.0,
        num_workers=num_workers,
        batch_size=4,
        **{"cache_dir": str(root.parent / "cache"), **changes},  # type: ignore[arg-type]
    )


@pytest.fixture
def tree(image_tree: Tree) -> Path:
    """23 readable images of two classes, one of them twice, and two files that are none."""
    root = image_tree({"cat": 12, "dog": 10})
    (root / "dog" / "again.png").write_bytes((root / "dog" / "3.png").read_bytes())
    (root / "cat" / "broken.png").write_bytes(b"not an image")
    (root / "dog" / "empty.png").write_bytes(b"")
    return root


def assert_equal_batches(left: object, right: object) -> None:
    for (images, labels), (others, same) in zip(left, right, strict=True):  # type: ignore[call-overload]
        assert torch.equal(images, others)
        assert images.stride() == others.stride()
        assert torch.equal(labels, same)


def test_splits_are_the_same_with_and_without_the_pixels_in_memory(tree: Path) -> None:
    kept, streamed = (config_of(tree, in_memory=flag) for flag in (True, False))
    one, two = load_splits(kept), load_splits(streamed)
    assert isinstance(one.train.images, np.ndarray)
    assert isinstance(two.train.images, ImageFiles)
    assert one.train.images.shape == two.train.images.shape
    for field in ("digest", "mean", "std", "broken_files", "class_names", "source", "name"):
        assert getattr(one, field) == getattr(two, field)
    for left, right in ((one.train, two.train), (one.val, two.val), (load_test(kept), load_test(streamed))):
        np.testing.assert_array_equal(left.indices, right.indices)
        np.testing.assert_array_equal(left.labels, right.labels)
        np.testing.assert_array_equal(left.gather(slice(None)), right.gather(slice(None)))
    assert len(two.broken_files) == 2


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_and_their_augmentation_are_the_same_to_the_bit(tree: Path, num_workers: int) -> None:
    augment = AugmentConfig(flip=True, crop_padding=2, mixup_alpha=0.5)
    modules = [
        ImageDataModule(load_splits(config), config, augment, seed=3)
        for config in (
            config_of(tree, in_memory=True),
            config_of(tree, in_memory=False, num_workers=num_workers),
        )
    ]
    for epoch in (0, 5):
        loaders = [module.train_batches(lambda epoch=epoch: epoch) for module in modules]  # type: ignore[misc]
        assert len(loaders[0]) == len(loaders[1]) > 2
        batches = [list(loader) for loader in loaders]
        assert_equal_batches(*batches)
        seen = [
            [module.mix(module.augment(images, epoch, i), labels, epoch, i) for i, (images, labels) in pairs]
            for module, pairs in zip(modules, map(enumerate, batches), strict=True)
        ]
        assert_equal_batches(*seen)
    assert_equal_batches(*(eval_batches(module.splits.val, 2) for module in modules))


def test_reading_ahead_draws_no_random_numbers(tree: Path) -> None:
    """Dropout's stream must be that of a run in memory."""
    arrays = load_splits(config_of(tree, in_memory=False)).train
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(eval_batches(arrays, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_pixels_are_written(tree: Path) -> None:
    load_splits(config_of(tree, in_memory=False))
    cached = {path.name for path in (tree.parent / "cache").rglob("*.npy")}
    assert cached == {"labels.npy", "hashes.npy", "moments.npy", "phashes.npy"}


def test_the_share_of_memory_decides(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_bytes = 25 * 16 * 16 * 3

    class Memory:
        total = 2 * num_bytes

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory)
    fits = config_of(tree, in_memory=True)
    assert isinstance(load_splits(fits).train.images, np.ndarray)
    Memory.total -= 1
    assert isinstance(load_splits(fits).train.images, ImageFiles)


def test_the_index_is_built_once_and_rebuilt_when_the_tree_changes(
    tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tree, in_memory=False)
    with caplog.at_level(logging.WARNING):
        before = load_splits(config).digest
    assert "max_memory_share=0 of the memory" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(folder, "decode_image", None)
        assert load_splits(config).digest == before
    Image.new("RGB", (9, 9), "red").save(tree / "cat" / "new.png")
    assert load_splits(config).digest != before


def test_more_images_than_one_chunk(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = load_splits(config_of(tree, in_memory=False))
    monkeypatch.setattr(folder, "CHUNK", 3)
    for in_memory in (True, False):
        changed = load_splits(
            config_of(tree, in_memory=in_memory, cache_dir=str(tree.parent / f"chunks-{in_memory}"))
        )
        assert (changed.digest, changed.mean) == (one.digest, one.mean)
        np.testing.assert_array_equal(one.train.gather(slice(None)), changed.train.gather(slice(None)))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_went_missing_gets_one_line(tree: Path, num_workers: int) -> None:
    splits = load_splits(config_of(tree, in_memory=False, num_workers=num_workers))
    for path in tree.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"(cat|dog)/\d+\.png can no longer be read") as caught:
        list(eval_batches(splits.train, 4))
    assert "\n" not in str(caught.value)


# ── worker processes ──────────────────────────────────────────────────────────────────────────────


def children_that_decode() -> list[psutil.Process]:
    """Return the workers: grandchildren, since the fork server starts them."""
    server = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    return [worker for parent in server for worker in parent.children()]


@pytest.mark.slow
def test_a_dead_worker_gets_one_line(tree: Path) -> None:
    arrays = load_splits(config_of(tree, in_memory=False, num_workers=2)).train
    batches = [np.arange(1)] * 100_000
    stream = arrays.stream(batches)
    next(stream)
    for worker in children_that_decode():
        worker.kill()
    with pytest.raises(DataError, match=r"data\.num_workers=2 processes that decode images died") as caught:
        for _ in stream:
            pass
    assert "\n" not in str(caught.value)


ENDLESS = """
import sys
import numpy as np
from pathlib import Path
from harness.data.decoding.image_files import ImageFiles

if __name__ == "__main__":
    root = Path(sys.argv[1])
    files = ImageFiles(root, tuple(str(p.relative_to(root)) for p in sorted(root.rglob("[0-9]*.png"))), 8, 2)
    for number, _ in enumerate(files.stream([np.arange(4)] * 1_000_000)):
        if number == 5:
            print("reading", flush=True)
"""


@pytest.mark.slow
def test_workers_go_with_a_killed_run(tree: Path, tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, str(script), str(tree)], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reading\n"
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3, "a fork server and two workers"
        process.kill()
        deadline = time.monotonic() + 300
        while any(member.is_running() for member in family) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [member for member in family if member.is_running()] == []
