"""A run whose images stay in their files ends with the weights of one that holds them in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config.compose import compose_run
from harness.training.checkpoints.checkpoint import load_checkpoint


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Sixty images whose colour tells the class."""
    rng = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("green", (40, 200, 40))):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for number in range(30):
            pixels = np.clip(rng.normal(colour, 60, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tree" / name / f"{number}.png")
    return tmp_path / "tree"


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_weights_are_the_same_after_an_interruption_too(
    run: Callable[..., tuple], tree: Path, tmp_path: Path, num_workers: int
) -> None:
    common = ("data=folder", f"data.dir={tree}", "data.decode_size=32", "data.batch_size=8", "model=lenet")
    common = (*common, "trainer.max_epochs=2", "augment=mix", "tracking.log_model=false")
    run(compose_run(common), "memory")

    asked = iter(range(10**6))
    config = compose_run([*common, "data.max_memory_share=0", f"data.num_workers={num_workers}"])
    first, _ = run(config, "files", stop_requested=lambda: next(asked) >= 9)  # 5 + 1 batches an epoch
    assert first.status == "interrupted"
    last, _ = run(config, "files")
    assert last.status == "finished"
    left, right = (load_checkpoint(tmp_path / name / "last.ckpt").state_dict for name in ("memory", "files"))
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
