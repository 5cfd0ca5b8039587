"""The cache of decoded images: built once, rebuilt when damaged, never half there."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from harness.data import decoded_cache
from harness.data.decoded_cache import DecodedSet, Description, create_images, finish_part, load_or_build
from harness.errors import DataError

COUNT = 200
NUM_PROCESSES = 3


def build(directory: Path) -> Description:
    with (directory.parent / "builds.log").open("a") as log:
        log.write("x")
    time.sleep(0.1)  # real builds take longer than opening the lock
    rng = np.random.default_rng(0)
    images = create_images(directory, "train", (COUNT, 6, 5, 3))
    images[:] = rng.integers(0, 256, images.shape)
    finish_part(directory, "train", images, np.arange(COUNT) % 4)
    return Description("made up", ("a", "b", "c", "d"), "a test", ("odd 文.png",))


def load(cache_dir: Path) -> DecodedSet:
    return load_or_build(cache_dir, "some", build)


def load_together(cache_dir: Path, number: int) -> bytes:
    """Load once all of the processes are there, so that all of them find no cache."""
    (cache_dir / f"ready-{number}").touch()
    while len(list(cache_dir.glob("ready-*"))) < NUM_PROCESSES:
        time.sleep(0.01)
    return load(cache_dir).parts["train"].images.tobytes()


def num_builds(cache_dir: Path) -> int:
    return len((cache_dir / "builds.log").read_text())


def test_it_is_built_once_and_then_mapped(cache_dir: Path) -> None:
    first, second = load(cache_dir), load(cache_dir)
    assert num_builds(cache_dir) == 1
    assert second.about == first.about == Description("made up", tuple("abcd"), "a test", ("odd 文.png",))
    images = second.parts["train"].images
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    np.testing.assert_array_equal(images, first.parts["train"].images)


def test_moments_are_the_sums_over_pixels(cache_dir: Path) -> None:
    part = load(cache_dir).parts["train"]
    wide = part.images.astype(np.int64)
    np.testing.assert_array_equal(part.moments[:, 0], wide.sum(axis=(1, 2)))
    np.testing.assert_array_equal(part.moments[:, 1], (wide**2).sum(axis=(1, 2)))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def overwrite_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200] + bytes(200))


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("train/images.npy", truncate),
        ("train/images.npy", overwrite_end),
        ("train/images.npy", Path.unlink),
        ("train/labels.npy", overwrite_end),
        ("train/moments.npy", truncate),
        ("train/hashes.npy", Path.unlink),
        ("meta.json", truncate),
        ("meta.json", Path.unlink),
    ],
)
def test_a_damaged_cache_is_rebuilt(cache_dir: Path, name: str, harm: Callable[[Path], None]) -> None:
    intact = load(cache_dir).parts["train"].images.copy()
    (folder,) = (path for path in cache_dir.iterdir() if path.is_dir())
    harm(folder / name)
    again = load(cache_dir)
    assert num_builds(cache_dir) == 2
    np.testing.assert_array_equal(again.parts["train"].images, intact)


def test_processes_that_start_together_build_once(cache_dir: Path) -> None:
    context = multiprocessing.get_context("spawn")
    cache_dir.mkdir()
    with ProcessPoolExecutor(NUM_PROCESSES, mp_context=context) as pool:
        loaded = list(pool.map(load_together, [cache_dir] * NUM_PROCESSES, range(NUM_PROCESSES)))
    assert num_builds(cache_dir) == 1
    assert len(set(loaded)) == 1


def test_a_build_that_fails_leaves_nothing(cache_dir: Path) -> None:
    def fail(directory: Path) -> Description:
        create_images(directory, "train", (1, 2, 2, 3))
        raise DataError("half way")

    with pytest.raises(DataError, match="half way"):
        load_or_build(cache_dir, "some", fail)
    assert [path for path in cache_dir.iterdir() if path.is_dir()] == []


def test_what_a_killed_build_left_is_swept_up(cache_dir: Path) -> None:
    (cache_dir / f".some-v{decoded_cache.FORMAT}-killed" / "train").mkdir(parents=True)
    load(cache_dir)
    assert [path.name for path in cache_dir.iterdir() if path.is_dir()] == [f"some-v{decoded_cache.FORMAT}"]


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"set data\.cache_dir") as caught:
        load(tmp_path / "file" / "cache")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_noticed_before_it_is_mapped(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr(decoded_cache.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(DataError, match=r"set data\.cache_dir to a larger disk"):
        load(cache_dir)


def test_a_read_only_cache_can_be_used(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(cache_dir)
    lock = next(cache_dir.glob("*.lock"))
    lock.unlink()
    monkeypatch.setattr(os, "open", lambda *args, **kwargs: pytest.fail("a lock was taken"))
    assert len(load(cache_dir).parts["train"].labels) == COUNT
