"""The feature cache: computed once, right whatever happened to its files, never over its limit."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from harness.data.features import entry as features
from harness.data.features.cache import clear_features, list_features, open_features
from harness.data.features.entry import EntryLayout, FeatureEntry, HalfOverflowError

ROWS = 50
LAYOUT = EntryLayout(ROWS, {"deep": ((4,), "float16"), "wide": ((2, 2, 3), "float32")}, {"model": "mine"})
GB = 1e9


class Backbone:
    """Computes rows that show where they belong, and counts how often."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.computed: list[int] = []
        self.delay_s = delay_s

    def __call__(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        self.computed.append(start)
        time.sleep(self.delay_s)
        return {name: expected(name)[start:stop] for name in LAYOUT.arrays}


def expected(name: str) -> np.ndarray:
    shape, dtype = LAYOUT.arrays[name]
    rows = np.arange(ROWS).reshape(-1, *(1 for _ in shape))
    return np.broadcast_to(rows, (ROWS, *shape)).astype(dtype)


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK_ROWS", 8)


@pytest.fixture
def entry(tmp_path: Path) -> Callable[[], FeatureEntry]:
    def _open() -> FeatureEntry:
        opened = open_features(tmp_path, "key", ROWS, lambda: LAYOUT, GB)
        assert opened is not None
        return opened

    return _open


def check(entry: FeatureEntry) -> None:
    for name in LAYOUT.arrays:
        assert np.array_equal(entry.read(name), expected(name))


def test_rows_are_computed_once_and_found_again(entry: Callable[[], FeatureEntry]) -> None:
    first, second = Backbone(), Backbone()

    assert entry().complete(["deep"], first, never)
    assert entry().complete(["wide"], second, never)

    check(entry())
    assert first.computed == list(range(0, ROWS, 8))
    assert second.computed == []


def test_a_flipped_bit_costs_its_chunk_alone(entry: Callable[[], FeatureEntry]) -> None:
    entry().complete(["deep"], Backbone(), never)
    path = entry().folder / "deep.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    backbone = Backbone()

    assert entry().complete(["deep"], backbone, never)

    assert backbone.computed == [48]
    check(entry())


@pytest.mark.parametrize("damage", ["truncated", "missing", "no description"])
def test_files_of_the_wrong_form_are_made_anew(entry: Callable[[], FeatureEntry], damage: str) -> None:
    entry().complete(["deep"], Backbone(), never)
    folder = entry().folder
    if damage == "truncated":
        os.truncate(folder / "wide.npy", 200)
    elif damage == "missing":
        (folder / "wide.npy").unlink()
    else:
        (folder / "about.json").write_text("{")
    backbone = Backbone()

    assert entry().complete(["deep"], backbone, never)

    assert len(backbone.computed) == 7
    check(entry())


def test_a_torn_mark_counts_as_no_mark(entry: Callable[[], FeatureEntry]) -> None:
    entry().complete(["deep"], Backbone(), never)
    (entry().folder / "done" / "16.json").write_text('{"deep": 1')
    backbone = Backbone()

    entry().complete(["deep"], backbone, never)

    assert backbone.computed == [16]


def test_racing_processes_share_the_work(entry: Callable[[], FeatureEntry]) -> None:
    backbones = [Backbone(delay_s=0.02) for _ in range(3)]
    threads = [
        threading.Thread(target=entry().complete, args=(["deep"], backbone, never)) for backbone in backbones
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    computed = [start for backbone in backbones for start in backbone.computed]
    assert sorted(computed) == list(range(0, ROWS, 8))  # each once
    assert sum(bool(backbone.computed) for backbone in backbones) > 1
    check(entry())


def test_an_interrupted_computation_goes_on_where_it_was(entry: Callable[[], FeatureEntry]) -> None:
    first, second = Backbone(), Backbone()

    assert not entry().complete(["deep"], first, lambda: len(first.computed) == 3)
    assert entry().complete(["deep"], second, never)

    assert first.computed + second.computed == list(range(0, ROWS, 8))


def test_an_error_in_the_backbone_leaves_no_mark(entry: Callable[[], FeatureEntry]) -> None:
    def fail(start: int, stop: int) -> Mapping[str, np.ndarray]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        entry().complete(["deep"], fail, never)
    backbone = Backbone()
    entry().complete(["deep"], backbone, never)
    assert len(backbone.computed) == 7


def test_an_entry_of_another_length_is_not_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shorter = EntryLayout(ROWS - 1, LAYOUT.arrays, {})
    open_features(tmp_path, "key", ROWS - 1, lambda: shorter, GB)

    opened = open_features(tmp_path, "key", ROWS, lambda: LAYOUT, GB)

    assert opened is not None
    assert opened.read("deep").shape == (ROWS, 4)
    assert "will be computed again" in caplog.text


@pytest.mark.parametrize("value", [65_519.0, -65_519.0])  # rounds to float16's largest
def test_the_largest_half_is_kept(tmp_path: Path, value: float) -> None:
    layout = EntryLayout(ROWS, {"deep": ((4,), "float16")}, {})
    opened = open_features(tmp_path, "key", ROWS, lambda: layout, GB)
    assert opened is not None

    assert opened.complete(["deep"], lambda start, stop: {"deep": np.full((stop - start, 4), value)}, never)


def test_what_is_beyond_a_half_is_never_kept_as_infinite(tmp_path: Path) -> None:
    """In whichever chunk it is: each is looked at after the cast."""
    layout = EntryLayout(ROWS, {"deep": ((4,), "float16")}, {})

    def rows(start: int, stop: int) -> Mapping[str, np.ndarray]:
        return {"deep": np.where(np.arange(start, stop)[:, None] == 33, 7e4, np.ones(4))}

    for _ in range(2):  # whoever finds the entry is told at once
        opened = open_features(tmp_path, "key", ROWS, lambda: layout, GB)
        assert opened is not None
        with pytest.raises(HalfOverflowError):
            opened.complete(["deep"], rows, never)
    assert np.isfinite(opened.read("deep")).all()


# ── the limit ─────────────────────────────────────────────────────────────────────────────────────


def _open_aged(cache_dir: Path, key: str, limit: float, age_s: float) -> FeatureEntry | None:
    opened = open_features(cache_dir, key, ROWS, lambda: LAYOUT, limit)
    if opened is not None:
        used = time.time() - age_s
        os.utime(opened.folder / "about.json", (used, used))
    return opened


def test_the_least_recently_used_makes_room(tmp_path: Path) -> None:
    limit = 2.5 * LAYOUT.num_bytes
    for key, age_s in (("older", 3000), ("old", 4000), ("older", 5000), ("old", 2000)):
        _open_aged(tmp_path, key, limit, age_s)

    assert _open_aged(tmp_path, "new", limit, 0) is not None

    assert [stored.folder.name for stored in list_features(tmp_path)] == ["old", "new"]


def test_what_is_in_use_is_not_evicted(tmp_path: Path) -> None:
    assert _open_aged(tmp_path, "running", LAYOUT.num_bytes, 0) is not None

    assert _open_aged(tmp_path, "another", LAYOUT.num_bytes, 0) is None

    assert [stored.folder.name for stored in list_features(tmp_path)] == ["running"]


def test_what_is_larger_than_the_limit_evicts_nothing(tmp_path: Path) -> None:
    _open_aged(tmp_path, "small", GB, 5000)

    assert open_features(tmp_path, "large", ROWS, lambda: LAYOUT, LAYOUT.num_bytes - 1) is None

    assert len(list_features(tmp_path)) == 1


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refuse)

    assert open_features(tmp_path, "key", ROWS, lambda: LAYOUT, GB) is None

    assert [path.name for path in (tmp_path / "features").iterdir() if path.is_dir()] == []


def test_a_full_disk_gets_room_from_what_is_not_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate, is_full = os.posix_fallocate, (tmp_path / "features" / "old").exists
    _open_aged(tmp_path, "old", GB, 5000)
    monkeypatch.setattr(os, "posix_fallocate", lambda *where: refuse() if is_full() else allocate(*where))

    assert open_features(tmp_path, "new", ROWS, lambda: LAYOUT, GB) is not None

    assert [stored.folder.name for stored in list_features(tmp_path)] == ["new"]


def test_a_file_system_that_cannot_allocate_is_written_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    large = EntryLayout(300, {"deep": ((1000,), "float32")}, {})
    opened = open_features(tmp_path, "key", 300, lambda: large, GB)

    assert opened is not None
    path = opened.folder / "deep.npy"
    assert path.stat().st_blocks * 512 >= 300 * 1000 * 4
    assert np.array_equal(np.load(path), np.zeros((300, 1000), np.float32))


def test_an_entry_takes_its_space_when_it_is_made(entry: Callable[[], FeatureEntry]) -> None:
    for path in entry().folder.glob("*.npy"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size, "it is sparse"


def test_two_entries_on_a_small_disk_end_in_no_signal(small_disk: Path) -> None:
    """Once both were made sparse, and filling the second one ended the process by SIGBUS."""
    layout = EntryLayout(3000, {"deep": ((250,), "float32")}, {})  # 3 of the disk's 5 MB
    first = open_features(small_disk, "first", 3000, lambda: layout, GB)
    assert first is not None

    assert open_features(small_disk, "second", 3000, lambda: layout, GB) is None

    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    ones = lambda start, stop: {"deep": np.ones((stop - start, 250), np.float32)}  # noqa: E731
    with pytest.raises(OSError, match="No space left"):  # for the marks, of which each is a file
        first.complete(["deep"], ones, never)


def test_clearing_removes_everything_and_says_how_much(tmp_path: Path) -> None:
    opened = open_features(tmp_path, "key", ROWS, lambda: LAYOUT, GB)
    assert opened is not None
    mapped = opened.read("deep")

    assert clear_features(tmp_path) == LAYOUT.num_bytes

    assert list_features(tmp_path) == []
    assert mapped.sum() == 0  # what is mapped stays readable
