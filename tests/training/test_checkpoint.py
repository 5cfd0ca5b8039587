"""Checkpoint files: whole or absent, and refused in one line when they are not ours."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from harness.errors import CheckpointError
from harness.training.checkpoint import AtomicCheckpointIO, load_checkpoint


def write_forever(path: Path, first_written: Event) -> None:
    for step in itertools.count():
        content = {"step": step, "x": torch.full((500_000,), float(step))}
        AtomicCheckpointIO().save_checkpoint(content, path)
        first_written.set()


def test_a_kill_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    fork = multiprocessing.get_context("fork")
    for attempt in range(5):
        first_written = fork.Event()
        writer = fork.Process(target=write_forever, args=(path, first_written))
        writer.start()
        assert first_written.wait(60)
        time.sleep(0.013 * (attempt + 1))
        writer.kill()
        writer.join()
        content = torch.load(path, weights_only=True)
        assert torch.equal(content["x"], torch.full((500_000,), float(content["step"])))


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"step": lambda: 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "best.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best\.ckpt is damaged"):
        load_checkpoint(path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint({"harness": {}, "state_dict": {"x": torch.zeros(10_000)}}, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_a_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="was not written by this program"):
        load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "best.ckpt")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (os.system, (f"touch {tmp_path / 'sprung'}",))

    path = tmp_path / "best.ckpt"
    torch.save({"harness": Trap()}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "sprung").exists()
