"""Runs with LoRA (they need peft): resumed as uninterrupted, and what they hand out needs no peft."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.cli.main import main
from harness.config.schema import RunConfig, TrackingConfig
from harness.tracking.runs import get_run
from harness.training.checkpoints.checkpoint import load_checkpoint, load_raw
from tests.training.conftest import stop_after

pytestmark = pytest.mark.integration  # `make test-integration` installs peft
SMALL = (
    "data=digits",
    "model=efficientnet_lite0",
    "model.image_size=32",
    "augment=none",
    "data.max_train_samples=96",
    "data.batch_size=32",
    "optim.lr=0.003",
    "trainer.precision=fp32",
)
LORA = ("finetune=lora", "finetune.rank=4")


@pytest.fixture(autouse=True)
def peft() -> None:
    pytest.importorskip("peft", reason="needs the extra: make setup-lora (or pip install 'harness[lora]')")


@pytest.mark.parametrize(
    "how",
    [
        ("finetune.dropout=0.2", "average=ema", "average.decay=0.9", "trainer.max_epochs=3"),
        ("trainer.gradient_checkpointing=true", "finetune.batch_norm=adapt", "trainer.max_epochs=2"),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    how: tuple[str, ...],
    run: Callable[..., tuple],
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    config = tiny_config(*SMALL, *LORA, *how)
    whole, _ = run(config, "whole")
    assert run(config, **stop_after(1))[0].status == "interrupted"
    resumed, _ = run(config)
    assert resumed.metrics["val/loss"] == whole.metrics["val/loss"]
    first, second = (load_raw(tmp_path / folder / "last.ckpt") for folder in ("whole", "run"))
    states = [one["state_dict"] for one in (first, second)]
    assert any("lora_B" in name for name in states[0])
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    moments = [one["optimizer_states"][0]["state"] for one in (first, second)]
    assert all(torch.equal(one["exp_avg"], moments[1][key]["exp_avg"]) for key, one in moments[0].items())


def test_activations_that_are_computed_again_change_nothing(
    run: Callable[..., tuple], tiny_config: Callable[..., RunConfig]
) -> None:
    results = [
        run(tiny_config(*SMALL, *LORA, "trainer.max_epochs=1", f"trainer.gradient_checkpointing={on}"), on)[0]
        for on in ("true", "false")
    ]
    assert results[0].metrics["val/loss"] == pytest.approx(results[1].metrics["val/loss"], rel=1e-4)


def test_what_is_handed_out_needs_no_peft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluation, a bundle, a soup, a teacher, and weights to begin with: all of the merged network."""
    monkeypatch.setenv("MLRUNS_DIR", str(tmp_path / "mlruns"))
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    tracking = TrackingConfig.at()
    small = [*SMALL, "trainer.max_epochs=2", "evaluation.pictures=none", "tracking.log_model=false"]
    for seed in (0, 1):
        assert main(["train", *small, *LORA, f"seed={seed}", f"tracking.run_name=run{seed}"]) == 0
    first = get_run(tracking, "run0")
    accuracy = first.metrics["best/val/accuracy"]

    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    capsys.readouterr()
    assert main(["evaluate", "--split", "val", "--run", "run0", "--json"]) == 0
    assert f'"val/accuracy": {accuracy}' in capsys.readouterr().out
    exports = tmp_path / "exports"
    assert main(["export", "--run", "run0", "--output", str(exports)]) == 0
    (bundle,) = exports.iterdir()  # ONNX Runtime gave torch's answers, or it would not be there
    assert main(["ensemble", "run0", "run1", "--soup"]) == 0
    kept = [
        load_checkpoint(tmp_path / "mlruns" / "checkpoints" / get_run(tracking, name).run_id / "best.ckpt")
        for name in ("run0", "run1", "soup-2")
    ]
    one, other, soup = (checkpoint.state_dict["network.blocks.6.0.conv_pwl.weight"] for checkpoint in kept)
    torch.testing.assert_close(soup, (one + other) / 2)

    still = ["optim.lr=1e-12", "finetune=linear_probe", "trainer.max_epochs=1"]
    taught = ["distill=soft_targets", "distill.teacher=run0"]
    assert main(["train", *small, *still, *taught, "init_from=run0", "tracking.run_name=still"]) == 0
    assert main(["train", *small, *still, f"init_from={bundle}", "tracking.run_name=again"]) == 0
    for name in ("still", "again"):
        assert get_run(tracking, name).metrics["best/val/accuracy"] == accuracy
