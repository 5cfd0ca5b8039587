"""Gradual unfreezing and LP-FT: rates, what trains when, operations, and a resume to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from harness.config.compose import compose_run
from harness.config.finetune import Gradual, ProbeThenFinetune
from harness.config.schema import AdamW, EfficientNetLite0, MuonOptim, RunConfig, ScheduleConfig
from harness.errors import ConfigError, ModelError
from harness.models import apply_freezing, build_model
from harness.models.freezing import depth_groups, thaw
from harness.training.checkpoints.checkpoint import load_checkpoint, load_raw
from harness.training.flops import ImageFlops, count_image_flops
from harness.training.image_views import views_to_cache
from harness.training.optimisation.averaging import IN_CHECKPOINT
from harness.training.optimisation.optim import build_optimizer, build_schedule
from harness.training.optimisation.schedules import lr_factor
from harness.training.train import train
from tests.helpers.recording_tracker import RecordingTracker

LITE0 = EfficientNetLite0(image_size=32, pretrained=False)
GRADUAL = ("finetune=gradual", "finetune.warmup_epochs=1.5", "trainer.max_epochs=4")
LP_FT = ("finetune=lp_ft", "finetune.probe_epochs=2", "trainer.max_epochs=4")
STEPS = 10  # an epoch


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunConfig]:
    """Runs of a small network with "pretrained" weights from a file: 80 images, 5 steps an epoch."""
    weights = tmp_path_factory.mktemp("weights") / "w.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    shape = (
        "data=digits",
        "data.max_train_samples=80",
        "data.batch_size=16",
        "augment=none",
        "optim.lr=0.003",
    )
    model = ("model=timm", "model.name=test_efficientnet", f"model.weights={weights}", "model.image_size=32")
    quiet = ("tracking.log_model=false", "evaluation.pictures=none", "trainer.precision=fp32")
    return lambda *overrides: compose_run([*shape, *model, *quiet, *overrides])


def run(config: RunConfig, folder: Path, **how: Any) -> dict[str, Any]:
    train(config, tracker=RecordingTracker(), checkpoint_dir=folder, **how)
    return load_raw(folder / "last.ckpt")


# ── rates ─────────────────────────────────────────────────────────────────────────────────────────


def traced(finetune: Any, optim: Any, epochs: int) -> dict[str, list[float]]:
    """Return the rate of each parameter in every step."""
    classifier = build_model(LITE0, 10)
    apply_freezing(classifier, finetune)
    names = {id(parameter): name for name, parameter in classifier.network.named_parameters()}
    optimizer = build_optimizer(classifier, optim, finetune)
    schedule = build_schedule(optimizer, optim.schedule, STEPS, epochs)
    rates: dict[str, list[float]] = {name: [] for name in names.values()}
    for _ in range(STEPS * epochs):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                rates[names[id(parameter)]].append(group["lr"])
        optimizer.step()
        schedule.step()
    return {name: found for name, found in rates.items() if found}


@pytest.mark.parametrize("optim", [AdamW(lr=0.2), MuonOptim(lr=0.2, schedule=ScheduleConfig())])
def test_a_group_joins_with_a_warm_up_of_its_own_under_the_schedule(optim: Any) -> None:
    finetune = Gradual(
        start_groups=1, every_epochs=2, final_groups=3, warmup_epochs=0.5, backbone_lr_scale=0.5
    )
    rates = traced(finetune, optim, 6)
    groups = depth_groups(build_model(LITE0, 10).network)
    assert {name for group in groups[:-3] for name in group}.isdisjoint(rates)
    schedule = [lr_factor(step, optim.schedule, STEPS, 6) for step in range(60)]
    for group, joins in ((groups[-1], 0), (groups[-2], 2 * STEPS), (groups[-3], 4 * STEPS)):
        weight = next(name for name in group if name.endswith("conv_pw.weight"))
        warmup = [0.0] * joins + ([(step + 1) / 6 for step in range(5)] if joins else [])
        warmup += [1.0] * (60 - len(warmup))
        assert rates[weight] == pytest.approx([0.1 * w * s for w, s in zip(warmup, schedule, strict=True)])


def test_each_phase_of_lp_ft_has_the_whole_schedule() -> None:
    cosine = ScheduleConfig(warmup_epochs=0.5)
    finetune = ProbeThenFinetune(probe_epochs=2, finetune_lr_scale=0.1, backbone_lr_scale=0.5)
    rates = traced(finetune, AdamW(lr=1.0, schedule=cosine), 5)
    probe = [lr_factor(step, cosine, STEPS, 2) for step in range(20)]
    after = [0.1 * lr_factor(step, cosine, STEPS, 3) for step in range(30)]
    assert rates["classifier.weight"] == pytest.approx([*probe, *after])
    assert rates["conv_stem.weight"] == pytest.approx([0.0] * 20 + [0.5 * rate for rate in after])


# ── what trains when ──────────────────────────────────────────────────────────────────────────────


def test_thawed_groups_train_and_the_others_are_frozen_in_every_way() -> None:
    classifier = build_model(LITE0, 10)
    finetune = Gradual(start_groups=1, every_epochs=2, groups_at_once=2, final_groups=4)
    report = apply_freezing(classifier, finetune, max_epochs=4)
    assert str(report).endswith("in the end 3 of 8 depth groups (blocks.4, blocks.5, blocks.6+conv_head+bn2)")
    groups = depth_groups(classifier.network)
    for epoch, count in ((0, 1), (1, 1), (2, 3), (3, 3), (4, 4), (9, 4)):
        thaw(classifier, finetune, epoch)
        expected = {name for group in groups[-count:] for name in group} | {
            "classifier.weight",
            "classifier.bias",
        }
        parameters = dict(classifier.network.named_parameters())
        assert {name for name in parameters if parameters[name].requires_grad} == expected & set(parameters)
        norms = {
            name: m.training for name, m in classifier.network.named_modules() if hasattr(m, "running_mean")
        }
        assert norms == {name: f"{name}.running_mean" in expected for name in norms}


def test_the_first_epoch_is_a_linear_probes_and_the_second_changes_one_group(
    small: Callable[..., RunConfig], tmp_path: Path
) -> None:
    constant = "optim.schedule.kind=constant"
    probe = run(small("finetune=linear_probe", "trainer.max_epochs=1", constant,
                      "finetune.cache_features=false"), tmp_path / "probe")["state_dict"]  # fmt: skip
    states = [
        run(small(*GRADUAL[:2], f"trainer.max_epochs={epochs}", constant), tmp_path / "run")["state_dict"]
        for epochs in (2, 3)
    ]
    first = load_checkpoint(tmp_path / "run" / "last.ckpt").config  # the run was prolonged, not begun anew
    assert first.trainer.max_epochs == 3
    groups = depth_groups(build_model(first.model, 10, load_weights=False).network)
    for state, count in zip(states, (1, 2), strict=True):
        moved = {name for name in probe if not torch.equal(state[name], probe[name])}
        thawed = {f"classifier.network.{name}" for group in groups[-count:] for name in group}
        assert (
            moved - {"classifier.network.classifier.weight", "classifier.network.classifier.bias"} == thawed
        )


# ── resumed ───────────────────────────────────────────────────────────────────────────────────────


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("policy", [GRADUAL, LP_FT], ids=["gradual", "lp_ft"])
def test_a_run_that_is_stopped_in_its_midst_ends_as_a_whole_one(
    policy: tuple[str, ...], small: Callable[..., RunConfig], tmp_path: Path
) -> None:
    whole = run(small(*policy), tmp_path / "whole")
    # After an epoch at whose end a group joins, and in the middle of that group's warm-up.
    run(small(*policy), tmp_path / "stopped",
        on_epoch=lambda report: "interrupt" if report.epoch == 1 else "continue")  # fmt: skip
    batches = iter(range(100))
    run(small(*policy), tmp_path / "stopped", stop_requested=lambda: next(batches) == 2)
    resumed = run(small(*policy), tmp_path / "stopped")
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(whole[part], resumed[part]), part
    scores = [
        [{key: value for key, value in metrics.items() if key.startswith(("train/", "val/", "lr"))}
         for metrics in raw["callbacks"]["EpochRecorder"]["history"]]
        for raw in (whole, resumed)
    ]  # fmt: skip
    assert scores[0] == scores[1]
    assert len(scores[0]) == 4
    assert scores[0][0]["lr"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [GRADUAL, (*GRADUAL, "finetune.final_groups=2"), LP_FT],
    ids=["gradual", "gradual, cached below", "lp_ft"],
)
def test_an_average_of_weights_that_thaw_ends_as_that_of_a_whole_run(
    policy: tuple[str, ...], small: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """The average begins before the stop; a group joins, and its norms begin to learn, after it."""
    ema = ("average=ema", "average.decay=0.9", "average.start_epoch=1", "augment.flip=true")
    config = small(*policy, *ema, "trainer.select=last", f"data.cache_dir={tmp_path}")
    run(config, tmp_path / "whole")
    run(config, tmp_path / "stopped",
        on_epoch=lambda report: "interrupt" if report.epoch == 1 else "continue")  # fmt: skip
    batches = iter(range(100))
    run(config, tmp_path / "stopped", stop_requested=lambda: next(batches) == 2)
    held = load_raw(tmp_path / "stopped" / "last.ckpt")
    assert held[IN_CHECKPOINT]["num_updates"] == 5  # those of one epoch
    run(config, tmp_path / "stopped")
    for file in ("last.ckpt", "best.ckpt"):
        whole, resumed = (load_raw(tmp_path / folder / file) for folder in ("whole", "stopped"))
        assert whole[IN_CHECKPOINT]["num_updates"] == 15
        for part in ("state_dict", IN_CHECKPOINT, "optimizer_states", "lr_schedulers"):
            assert same(whole[part], resumed[part]), (file, part)
        trained = whole[IN_CHECKPOINT]["trained"]
        assert whole["state_dict"].keys() == trained.keys()
        moved = {name for name, tensor in trained.items() if not same(tensor, whole["state_dict"][name])}
        assert any(name.endswith("running_mean") for name in moved)
        assert any(name.endswith("classifier.weight") for name in moved)
    histories = [
        [{key: value for key, value in metrics.items() if key.startswith(("train/", "val/", "lr"))}
         for metrics in load_raw(tmp_path / folder / "last.ckpt")["callbacks"]["EpochRecorder"]["history"]]
        for folder in ("whole", "stopped")
    ]  # fmt: skip
    assert histories[0] == histories[1]


# ── what it costs, and what of it is cached ───────────────────────────────────────────────────────


def counted(config: RunConfig, num_epochs: int | None = None) -> ImageFlops:
    return count_image_flops(config, 10, views_to_cache(config), num_epochs)


def test_operations_are_those_of_what_trains_in_each_epoch(small: Callable[..., RunConfig]) -> None:
    on_images = "finetune.cache_features=false"
    stages = [counted(small("finetune=linear_probe", on_images)).step]
    stages += [
        counted(small("finetune=partial", f"finetune.trainable_groups={k}", on_images)).step for k in (1, 2)
    ]
    assert all(less < more for less, more in pairwise(stages))
    gradual = small("finetune=gradual", "finetune.every_epochs=2", "trainer.max_epochs=6")
    assert counted(gradual).step == pytest.approx(sum(stages) / 3)
    assert counted(gradual, 3).step == pytest.approx((2 * stages[0] + stages[1]) / 3)
    full = counted(small("finetune=full")).step
    assert counted(small(*LP_FT)).step == pytest.approx((stages[0] + full) / 2)


@pytest.mark.slow
def test_what_stays_frozen_to_the_end_is_cached(small: Callable[..., RunConfig], tmp_path: Path) -> None:
    final = small(*GRADUAL, "finetune.final_groups=2", f"data.cache_dir={tmp_path}")
    assert views_to_cache(final) == 1
    assert views_to_cache(small(*GRADUAL)) is None
    assert counted(final).once == counted(small("finetune=partial", "finetune.trainable_groups=2")).once > 0
    cached = run(final, tmp_path / "cached")["state_dict"]
    assert any((tmp_path / "features").iterdir())
    on_images = run(
        small(*GRADUAL, "finetune.final_groups=2", "finetune.cache_features=false"), tmp_path / "i"
    )
    for name, tensor in on_images["state_dict"].items():
        torch.testing.assert_close(cached[name], tensor, rtol=5e-2, atol=5e-3)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ([*GRADUAL, "finetune.final_groups=4"], r"final_groups=4 in epoch 5, beyond trainer\.max_epochs=4"),
        ([*GRADUAL, "finetune.every_epochs=4"], r"its first group in epoch 5, beyond trainer\.max_epochs=4"),
        ([*GRADUAL, "finetune.start_groups=2", "finetune.final_groups=2"], r"must be above start_groups=2"),
        ([*LP_FT, "finetune.probe_epochs=4"], r"probe_epochs=4 leaves nothing"),
        ([*LP_FT, "optim.schedule.warmup_epochs=2"], r"nothing of the 2 epochs of a phase"),
        ([*GRADUAL, "model=lenet"], r"would freeze random weights of lenet"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        compose_run(["data=digits", *overrides])


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (Gradual(final_groups=9), r"final_groups=9 is more than the model has: use 8"),
        (Gradual(start_groups=9), r"start_groups=9 is more than the model has: use 8"),
        (ProbeThenFinetune(trainable_groups=9), r"trainable_groups=9 is more than the model has: use 8"),
    ],
)
def test_more_groups_than_there_are_is_one_line(policy: Any, problem: str) -> None:
    with torch.device("meta"), pytest.raises(ModelError, match=problem):
        apply_freezing(build_model(LITE0, 10), policy)
