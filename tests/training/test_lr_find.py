"""`harness lr-find`: the rates that it tries, the rate that it names, and when it names none."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from harness.cli.main import main
from harness.config.schema import RunConfig
from harness.errors import ConfigError
from harness.training.commands.lr_find import BELOW_LOWEST, RateTest, find_rate, rate_test_figure

Config = Callable[..., RunConfig]
RATES = [float(rate) for rate in np.geomspace(1e-6, 10, 100)]
DECADES = np.log10(RATES)


def made_up(losses: np.ndarray, *, has_diverged: bool = False) -> RateTest:
    count = len(losses)
    return RateTest("sgd", RATES[:count], losses.tolist(), 100, has_diverged)


def falling_then_rising(seed: int) -> np.ndarray:
    """A loss with a first fall at 1e-5, as of an untrained network, a second one, and a minimum at 0.02."""
    first = 0.8 / (1 + np.exp(-6 * (DECADES + 5)))
    second = 0.9 / (1 + np.exp(-4 * (DECADES + 2.5)))
    rise = np.exp(5 * (DECADES - np.log10(0.06)))
    losses = 3.1 - first - second + np.minimum(rise, 8)
    return losses + np.random.default_rng(seed).normal(0, 0.05, 100)


def test_the_suggestion_lies_below_the_minimum_of_a_known_curve() -> None:
    exact = RATES[int(falling_then_rising(0).argmin())]
    for seed in range(10):
        test = made_up(falling_then_rising(seed))
        assert test.suggestion is not None
        assert abs(np.log10(test.rates[test.lowest]) - np.log10(0.02)) < 0.25, (seed, exact)
        assert test.suggestion == pytest.approx(test.rates[test.lowest] / BELOW_LOWEST, rel=0.05)
    drawn = "\n".join(text.get_text() for text in rate_test_figure(test).findobj(Text))
    assert f"suggestion: {test.suggestion:g}" in drawn


def test_of_two_valleys_about_equally_deep_the_last_counts() -> None:
    hump = 1.5 * np.exp(-(((DECADES + 2.5) / 0.25) ** 2))

    def lowest(raised: float) -> float:
        """Return the rate of the lowest loss where the second valley, at 0.02, lies higher by so much."""
        test = made_up(2.3 - 0.8 / (1 + np.exp(-6 * (DECADES + 5))) + hump + raised * (DECADES > -2.5) + rise)
        return test.rates[test.lowest]

    rise = np.minimum(np.exp(10 * (DECADES - np.log10(0.06))), 8)
    assert 0.005 < lowest(0.05) < 0.05
    assert lowest(0.4) < 1e-3


@pytest.mark.parametrize(
    ("slope", "num_steps", "has_diverged", "problem"),
    [
        (0.0, 100, False, "the loss does not fall by more than it scatters"),
        (0.5, 100, False, "the loss does not fall by more than it scatters"),
        (0.5, 30, True, "the loss does not fall before it diverges: the rates are too large, lower --low"),
        (-2.0, 100, False, "the loss still falls at the highest rate: the rates are too small, raise --high"),
    ],
)
def test_a_curve_without_a_minimum_has_no_suggestion_but_a_reason(
    slope: float, num_steps: int, has_diverged: bool, problem: str
) -> None:
    for seed in range(20):
        losses = (
            4.3 + np.random.default_rng(seed).normal(0, 0.1, num_steps) + slope * np.arange(num_steps) / 100
        )
        test = made_up(losses, has_diverged=has_diverged)
        assert test.suggestion is None, seed
        assert f"no suggestion: {problem}" in str(test), seed


def test_groups_keep_their_ratio_over_several_epochs_and_nothing_else_is_touched(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []

    def look(optimizer: Optimizer, *_: object) -> None:
        rates = {group["name"].split("/")[0]: group["lr"] for group in optimizer.param_groups}
        seen.append((rates["backbone"], rates["head"]))

    monkeypatch.chdir(tmp_path)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    handle = register_optimizer_step_post_hook(look)
    try:  # 3 steps an epoch
        test = find_rate(
            tiny_config("finetune.backbone_lr_scale=0.5", "trainer.max_epochs=2"), 1e-5, 1e-2, 20
        )
    finally:
        handle.remove()
    assert test.rates == pytest.approx(list(np.geomspace(1e-5, 1e-2, 20)))
    assert len(test.losses) == 20
    assert [head for _, head in seen] == pytest.approx(test.rates)
    assert [backbone for backbone, _ in seen] == pytest.approx([rate / 2 for rate in test.rates])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[index]
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_where_the_loss_diverges_and_draws_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.png"
    words = ["lr-find", "data=digits", "model=lenet", "optim=sgd", "data.batch_size=32"]
    assert main([*words, "--high", "1e4", "--steps", "80", "--output", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "harness.lr-find/1"
    assert document["has_diverged"]
    assert len(document["rates"]) == len(document["losses"]) < 80
    assert 1e-3 < document["rate_of_lowest"] < 1
    assert document["why_none"] is None
    assert path.is_file()


@pytest.mark.parametrize(
    ("low", "high", "steps", "problem"),
    [(1.0, 0.1, 50, "are no range"), (1e-5, 1.0, 5, "too few to see a curve: give 20 or more")],
)
def test_a_test_without_sense_is_refused(
    low: float, high: float, steps: int, problem: str, tiny_config: Config
) -> None:
    with pytest.raises(ConfigError, match=problem):
        find_rate(tiny_config(), low, high, steps)
