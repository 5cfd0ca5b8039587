"""`harness lr-curve` shows the rates that a run then trains with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.text import Text
from PIL import Image
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from harness.cli.main import main
from harness.config.schema import RunConfig
from harness.training.commands.lr_curve import RateCurve, rate_figure, trace_rates

Config = Callable[..., RunConfig]


def texts_in(curve: RateCurve) -> str:
    return "\n".join(text.get_text() for text in rate_figure(curve).findobj(Text))  # type: ignore[attr-defined]


def test_the_curve_is_what_a_run_trains_with(run: Callable[..., tuple], tiny_config: Config) -> None:
    seen: dict[str, list[float]] = {"backbone": [], "head": []}

    def look(optimizer: Optimizer, *_: object) -> None:
        for role, rates in seen.items():
            [rate] = {group["lr"] for group in optimizer.param_groups if group["name"].startswith(role)}
            rates.append(rate)

    how = ("optim.schedule.cycles=2", "optim.schedule.warmup_epochs=0.5", "finetune.backbone_lr_scale=0.3")
    config = tiny_config("trainer.max_epochs=4", *how)
    handle = register_optimizer_step_post_hook(look)
    try:
        run(config)
    finally:
        handle.remove()
    curve = trace_rates(config)
    assert curve.rates == seen
    assert (curve.steps_per_epoch, curve.max_epochs) == (3, 4)


def test_the_command_writes_a_picture_and_the_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "curve.png"
    words = [
        "lr-curve",
        "data=digits",
        "model=lenet",
        "optim.schedule.kind=trapezoid",
        "trainer.max_epochs=2",
    ]
    assert main([*words, "--output", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    [group] = document["groups"]
    steps = document["steps_per_epoch"]
    assert (document["schema"], group["name"], len(group["rates"])) == (
        "harness.lr-curve/1",
        "backbone, head",
        2 * steps,
    )
    assert group["rates"][0] == 0.001 > group["rates"][-1] > 0
    assert Image.open(path).size == (850, 420)


def test_a_plateau_says_what_is_not_drawn(tiny_config: Config) -> None:
    curve = trace_rates(tiny_config("optim.schedule.kind=plateau", "optim.schedule.patience=2"))
    assert set(curve.rates["backbone, head"]) == {0.003}
    assert "× 0.1 whenever val/accuracy has got no better for 2 epochs" in str(curve)
    assert "no better for 2 epochs" in texts_in(curve).replace("\n", " ")


def test_more_groups_than_colours_are_said_to_be_left_out() -> None:
    curve = RateCurve("cosine", "sgd", 1, 2, {f"group {k}": [0.1 * k, 0.0] for k in range(1, 13)})
    texts = texts_in(curve).splitlines()
    assert "first 8 of 12 groups" in texts
    assert "group 8" in texts
    assert "group 9" not in texts
