"""Checkpoints are refused in one line when they are damaged or not ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from harness.errors import CheckpointError
from harness.training.checkpoints.checkpoint import load_checkpoint
from harness.training.checkpoints.checkpoint_io import AtomicCheckpointIO


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
