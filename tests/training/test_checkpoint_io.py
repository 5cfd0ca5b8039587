"""Checkpoint files: whole whatever is killed, and known to be damaged whatever bit flips."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import time
import zipfile
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.errors import CheckpointError, DamagedCheckpointError, DiskFullError
from harness.training.checkpoints import checkpoint_io
from harness.training.checkpoints.checkpoint_io import (
    AtomicCheckpointIO,
    make_room,
    previous_of,
    verify_digest,
)
from tests.training.conftest import flip_bit, limited_file_size

KILLS = 10


def save(content: object, path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(content, path)  # type: ignore[arg-type]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def is_whole(path: Path) -> bool:
    return path.is_file() and verify_digest(path)


def write_forever(path: Path, first: int, has_written: Event) -> None:
    for step in itertools.count(first):
        save({"step": step, "x": torch.full((500_000,), float(step))}, path)
        has_written.set()


def test_a_kill_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    fork = multiprocessing.get_context("fork")
    random_delay = random.Random(0)
    newest = -1
    for _ in range(KILLS):
        has_written = fork.Event()
        writer = fork.Process(target=write_forever, args=(path, newest + 1, has_written))
        writer.start()
        assert has_written.wait(60)
        time.sleep(random_delay.uniform(0, 0.06))
        writer.kill()
        writer.join()
        whole = next(file for file in (path, previous_of(path)) if is_whole(file))
        content = load(whole)
        assert content["step"] > newest, "what was once written is not lost"
        assert torch.equal(content["x"], torch.full((500_000,), float(content["step"])))
        newest = content["step"]
    make_room(tmp_path, nn.Linear(1, 1))
    assert {file.name for file in tmp_path.iterdir()} <= {"last.ckpt", "last.previous.ckpt"}


def test_the_checkpoint_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for step in range(3):
        save({"step": step}, path)
    assert (load(path), load(previous_of(path))) == ({"step": 2}, {"step": 1})
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        save({"step": lambda: 2}, path)
    assert load(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_digest_leaves_the_file_readable_by_anybody(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    tensor = torch.randn(1000)
    save({"x": tensor}, path)
    for how in ({}, {"mmap": True}):
        assert torch.equal(torch.load(path, weights_only=True, **how)["x"], tensor)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert file.comment.startswith(b"sha256:")


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save({"x": torch.arange(8.0)}, path)
    content = path.read_bytes()
    for position in range(len(content)):
        flip_bit(path, position, bit=position % 8)
        with pytest.raises(DamagedCheckpointError, match="SHA-256"):
            verify_digest(path)
        flip_bit(path, position, bit=position % 8)
    assert path.read_bytes() == content
    assert verify_digest(path)


def test_damage_that_crcs_miss_is_noticed(tmp_path: Path) -> None:
    """A tensor that the zip's directory calls a folder: torch would return uninitialised memory for it."""
    path = tmp_path / "last.ckpt"
    save({"x": torch.arange(8.0)}, path)
    name = b"archive/data/0"
    attributes = path.read_bytes().rindex(name) - 8  # of the record, in the zip's directory
    flip_bit(path, attributes, bit=4)
    with zipfile.ZipFile(path) as file:
        assert file.getinfo(name.decode()).external_attr == 0x10
        assert file.testzip() is None
    with pytest.raises(DamagedCheckpointError, match="SHA-256"):
        verify_digest(path)


def test_any_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save({"x": torch.arange(8.0)}, path)
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(DamagedCheckpointError):
            verify_digest(path)


def test_a_checkpoint_of_an_older_version_has_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"x": torch.arange(8.0)}, path)
    assert not verify_digest(path)


def test_a_limit_on_file_sizes_is_named_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save({"step": 1}, path)
    with limited_file_size(100_000), pytest.raises(DiskFullError, match=r"4\.0 MB .*ulimit -f"):
        save({"x": torch.zeros(1_000_000)}, path)
    assert load(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    save({"step": 2}, path)
    assert load(path) == {"step": 2}


def test_a_full_disk_is_named_and_changes_nothing(small_disk: Path) -> None:
    path = small_disk / "last.ckpt"
    save({"step": 1}, path)
    with pytest.raises(DiskFullError, match=r"8\.0 MB \(No space left on device, .* free\): make room"):
        save({"x": torch.zeros(2_000_000)}, path)
    assert load(path) == {"step": 1}
    assert [file.name for file in small_disk.iterdir()] == ["last.ckpt"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write .*last\.ckpt"):
        save({"step": 1}, tmp_path / "file" / "last.ckpt")


def test_room_is_looked_for_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(1000, 1000, bias=False)  # 4 MB, 12 with Adam's moments, 60 for the files of a run
    folder = tmp_path / "not" / "there yet"
    monkeypatch.setattr(checkpoint_io, "free_bytes", lambda folder: 59_000_000)
    with pytest.raises(DiskFullError, match=r"may need 60\.0 MB .* 59\.0 MB are free"):
        make_room(folder, model)
    model.requires_grad_(False)
    make_room(folder, model)
    model.requires_grad_(True)
    save({}, tmp_path / "last.ckpt")
    make_room(tmp_path, model)  # a run that has a file already needs less
