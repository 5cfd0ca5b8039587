"""EMA and SWA: the averages of timm, torch and a formula; validated, kept, and resumed to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import update_bn

from harness.analysis.metrics import split_metrics
from harness.config.average import Ema, Swa
from harness.config.compose import compose_run
from harness.config.schema import RunConfig, TimmModel
from harness.data import load_splits
from harness.data.datamodule import ImageDataModule
from harness.errors import ConfigError
from harness.models import ImageClassifier, build_model
from harness.training.checkpoints.checkpoint import SECTION, load_checkpoint, load_raw, restore_classifier
from harness.training.devices.collectives import Ranks
from harness.training.flops import count_forward_flops, count_image_flops
from harness.training.optimisation.averaging import IN_CHECKPOINT, WeightAverage, kept_weights
from tests.training.conftest import stop_after

Config = Callable[..., RunConfig]
Run = Callable[..., tuple]
FP32 = "trainer.precision=fp32"
WITH_NORMS = ("model=timm", "model.name=test_resnet", "model.image_size=32")


def networks() -> ImageClassifier:
    torch.manual_seed(0)
    return build_model(TimmModel(name="test_resnet", image_size=32), 4).train()


def steps(classifier: ImageClassifier, count: int) -> Any:
    """Train, and yield after each step."""
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        optimizer.zero_grad()
        classifier(torch.rand(8, 3, 32, 32, generator=generator)).square().mean().backward()
        optimizer.step()
        yield


def test_an_ema_is_timms_with_buffers_and_counts() -> None:
    classifier = networks()
    ours = WeightAverage(classifier, Ema(decay=0.8, warmup=False), 1, Ranks())
    theirs: ModelEmaV3 | None = None
    for _ in steps(classifier, 5):
        ours.after_step(classifier, 0, is_last=False, images=list)
        if theirs is None:  # the first update copies
            theirs = ModelEmaV3(classifier, decay=0.8)
        else:
            theirs.update(classifier)
    assert theirs is not None
    found = ours.classifier.state_dict()
    for name, tensor in theirs.module.state_dict().items():
        assert torch.equal(found[name], tensor), name
    counts = [tensor for name, tensor in found.items() if name.endswith("num_batches_tracked")]
    assert counts
    assert {int(count) for count in counts} == {5}
    assert not torch.equal(found["network.fc.weight"], classifier.network.fc.weight)


def test_the_decay_of_an_ema_rises() -> None:
    classifier = networks()
    ours = WeightAverage(classifier, Ema(decay=0.3), 1, Ranks())
    expected = None
    for count, _ in enumerate(steps(classifier, 6)):
        ours.after_step(classifier, 0, is_last=False, images=list)
        weight = classifier.network.fc.weight.detach().double()
        decay = min(0.3, (1 + count) / (10 + count))  # 2/11, 3/12, then 0.3
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert expected is not None
    assert torch.allclose(ours.classifier.network.fc.weight.double(), expected, rtol=1e-5)


def test_the_average_is_validated_and_kept_and_the_weights_that_train_stand_beside_it(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config(
        FP32, "trainer.max_epochs=2", "trainer.select=last", "average=ema", "average.decay=0.9"
    )
    result, _ = run(config)
    raw = load_raw(tmp_path / "run" / "last.ckpt")
    assert raw[IN_CHECKPOINT]["num_updates"] == 6
    val = load_splits(config.data).val
    images = torch.from_numpy(val.gather(slice(None))).permute(0, 3, 1, 2)

    def val_loss(classifier: ImageClassifier) -> float:
        with torch.inference_mode():
            return split_metrics(classifier(images).numpy(), val.labels)["loss"]

    kept = restore_classifier(load_checkpoint(tmp_path / "run" / "best.ckpt"))
    assert val_loss(kept) == pytest.approx(result.metrics["val/loss"], rel=1e-5)
    trained = {name.removeprefix("classifier."): t for name, t in raw[IN_CHECKPOINT]["trained"].items()}
    kept.load_state_dict(trained)
    assert val_loss(kept) != pytest.approx(result.metrics["val/loss"], rel=1e-3)


def test_an_epoch_from_before_the_average_is_said_to_be_none(caplog: pytest.LogCaptureFixture) -> None:
    config = compose_run(["data=digits", "model=lenet", "trainer.max_epochs=4", "average=swa"])
    assert kept_weights(config, 3) == "swa"
    assert caplog.messages == []
    assert kept_weights(config, 2) == "trained"
    [message] = caplog.messages
    assert message == (
        "the kept epoch, 3, is from before the SWA, which begins with epoch 4: its weights are no average "
        "(trainer.select=last keeps the average)"
    )


@pytest.mark.slow
def test_swa_is_the_mean_of_the_epochs_with_statistics_of_its_own(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    """Its statistics are those that torch's update_bn computes over the last epoch's augmented images."""
    how = (
        *WITH_NORMS,
        "trainer.max_epochs=4",
        "trainer.select=last",
        "augment=standard",
        "data.batch_size=64",
    )
    config = tiny_config(FP32, *how, "average=swa", "average.start_epoch=2", "data.max_train_samples=130")
    last = tmp_path / "run" / "last.ckpt"
    ends: list[dict[str, torch.Tensor]] = []

    def trained_weights() -> dict[str, torch.Tensor]:
        raw = load_raw(last)
        assert (IN_CHECKPOINT in raw) == (raw[SECTION]["epoch"] >= 2)
        return raw.get(IN_CHECKPOINT, {"trained": raw["state_dict"]})["trained"]

    run(
        config,
        on_epoch=lambda report: ends.append(trained_weights()) or "continue" if report.epoch else "continue",
    )
    ends.append(trained_weights())
    kept = restore_classifier(load_checkpoint(tmp_path / "run" / "best.ckpt"))
    expected = copy.deepcopy(kept)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            parameter.copy_((ends[2]["classifier." + name] + ends[3]["classifier." + name]) / 2)
            assert torch.allclose(kept.get_parameter(name), parameter, atol=1e-6), name
            parameter.copy_(kept.get_parameter(name))
        for name, buffer in expected.named_buffers():
            if "running" in name:
                buffer.fill_(7)
    splits = load_splits(config.data)
    data = ImageDataModule(splits, config.data, config.augment, config.seed)
    update_bn(list(data.images_again(3, torch.device("cpu"))), expected)
    for name, buffer in expected.named_buffers():
        assert torch.allclose(kept.get_buffer(name), buffer, atol=1e-5), name


def test_swa_leaves_frozen_statistics_alone() -> None:
    classifier = networks()
    classifier.frozen_modules = ("layer1",)
    classifier.train()
    before = copy.deepcopy(classifier.network.layer1.state_dict())
    average = WeightAverage(classifier, Swa(start_epoch=0), 2, Ranks())
    average.after_step(classifier, 1, is_last=True, images=lambda: [torch.rand(8, 3, 32, 32)])
    found = average.classifier.network
    assert all(torch.equal(found.layer1.state_dict()[name], tensor) for name, tensor in before.items())
    assert int(found.layer4[0].bn1.num_batches_tracked) == 1
    assert not any(module.training for module in average.classifier.modules())


@pytest.mark.parametrize(
    "average",
    [
        ("average=ema", "average.decay=0.9", "average.start_epoch=1"),
        pytest.param(("average=swa", "average.start_epoch=1"), marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_average_ends_as_an_uninterrupted_one(
    run: Run, tiny_config: Config, tmp_path: Path, average: tuple[str, ...]
) -> None:
    """Interrupted after the first batch of the third epoch, when one epoch has been averaged."""
    network = WITH_NORMS if average[0] == "average=swa" else ()
    config = tiny_config(FP32, "trainer.max_epochs=4", "augment=standard", *network, *average)
    run(config, "whole")
    parts, _ = run(config, **stop_after(2))
    assert (parts.status, load_raw(tmp_path / "run" / "last.ckpt")[SECTION]["epoch"]) == ("interrupted", 1)
    run(config)
    for name in ("last.ckpt", "best.ckpt"):
        whole, resumed = (load_raw(tmp_path / folder / name) for folder in ("whole", "run"))
        assert whole["harness"]["score"] == resumed["harness"]["score"]
        assert whole[IN_CHECKPOINT]["num_updates"] == resumed[IN_CHECKPOINT]["num_updates"]
        for one, other in (
            (whole["state_dict"], resumed["state_dict"]),
            (whole[IN_CHECKPOINT]["trained"], resumed[IN_CHECKPOINT]["trained"]),
        ):
            assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.mark.slow
def test_an_average_over_cached_features_is_that_of_the_whole_network(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    probe = ("model=efficientnet_lite0", "model.image_size=32", "finetune=linear_probe", "augment=none")
    config = tiny_config(
        FP32, *probe, "trainer.max_epochs=2", "trainer.select=last", "average=ema", "average.decay=0.5"
    )
    result, tracker = run(config)
    assert tracker.params["features.cached"] == "true"
    kept = load_checkpoint(tmp_path / "run" / "best.ckpt")
    assert result.checkpoint is not None
    assert set(kept.state_dict) == set(restore_classifier(kept).state_dict())


def test_swa_counts_its_pass_over_the_images() -> None:
    config = compose_run(["data=digits", *WITH_NORMS, "trainer.max_epochs=4", "average=swa"])
    plain = count_image_flops(compose_run(["data=digits", *WITH_NORMS]), 10, None)
    forward = count_forward_flops(config, 10)
    assert count_image_flops(config, 10, None).step == plain.step + forward / 4  # the last of four epochs
    assert count_image_flops(config, 10, None, num_epochs=3).step == plain.step
    lenet = ["data=digits", "model=lenet"]  # has no statistics to compute
    assert count_image_flops(compose_run([*lenet, "average=swa"]), 10, None) == count_image_flops(
        compose_run([*lenet, "average=ema"]), 10, None
    )


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["average=ema", "average.decay=1"], r"average\.decay: 1 would keep the first weights for ever: use"),
        (["average=ema", "average.decay=1.5"], r"average\.decay: 1\.5 is no average"),
        (
            ["average=swa", "average.start_epoch=10"],
            r"start_epoch=10 leaves nothing of trainer\.max_epochs=10",
        ),
        (["average=swa", "average.decay=0.9"], r"decay"),
        (["average=emma"], "did you mean 'ema'"),
    ],
)
def test_bad_settings_are_one_clear_line(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        compose_run(["data=digits", "model=lenet", *overrides])
    assert "\n" not in str(caught.value)
