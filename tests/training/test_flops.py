"""The operations of a training: by hand, for depthwise convolutions, frozen and cached parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.errors import ModelError
from harness.models import ImageClassifier, build_model
from harness.models.convolutions import DepthwiseConv2d, PointwiseConv2d, speed_up_convolutions
from harness.training import flops as module
from harness.training.flops import ImageFlops, count_image_flops
from harness.training.image_views import views_to_cache

MOBILE = ("model=timm", "model.name=test_efficientnet", "model.image_size=64")
FLIP = ("augment=none", "augment.flip=true")

Run = Callable[..., tuple]
Config = Callable[..., RunConfig]


def counted(*overrides: str, classes: int = 10) -> ImageFlops:
    config = compose_run(["data=digits", *overrides])
    return count_image_flops(config, classes, views_to_cache(config))


def by_hand(*overrides: str) -> dict[str, float]:
    """Return the operations of each layer's forward pass for one image, from the shapes on a CPU."""
    config = compose_run(["data=digits", *overrides])
    classifier, found = build_model(config.model, 10, load_weights=False), dict[str, float]()

    def note(name: str, layer: nn.Module) -> None:
        def hook(layer: nn.Module, _: object, output: torch.Tensor) -> None:
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            found[name] = 2.0 * output[0].numel() * weight[0].numel()

        layer.register_forward_hook(hook)

    for name, layer in classifier.network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            note(name, layer)
    classifier.eval()(torch.zeros(1, 3, classifier.image_size, classifier.image_size, dtype=torch.uint8))
    return found


@pytest.mark.parametrize("model", [("model=lenet",), ("model=resnet18",), MOBILE])
def test_a_step_is_three_forward_passes_but_for_the_gradient_of_the_images(model: tuple[str, ...]) -> None:
    layers = by_hand(*model)

    first = next(iter(layers.values()))
    assert counted(*model) == ImageFlops(3 * sum(layers.values()) - first)


def test_attention_counts() -> None:
    """Two products of 101 × 101 tokens in each of 6 blocks of 64 channels."""
    vit = ("model=timm", "model.name=test_vit", "model.image_size=160")
    tokens, blocks, width = 101, 6, 64
    layers = by_hand(*vit)
    attention = blocks * 2 * (2 * tokens * tokens * width)
    patches = next(iter(layers.values()))  # there is no gradient of the images
    assert counted(*vit).step == 3 * (sum(layers.values()) + attention) - patches


def test_the_faster_convolutions_count_like_those_that_they_replace() -> None:
    config = compose_run(["model=efficientnet_lite0", "model.image_size=64"])  # it ends at 2 × 2 pixels
    steps = []
    for speed_up in (False, True):
        with torch.device("meta"):
            classifier = build_model(config.model, 10, load_weights=False).train()
            if speed_up:
                speed_up_convolutions(classifier.network)
                kinds = {type(layer) for layer in classifier.network.modules()}
                assert {DepthwiseConv2d, PointwiseConv2d} <= kinds
            steps.append(module._count_step(classifier, torch.zeros(2, 3, 64, 64, dtype=torch.uint8)))

    assert steps[0] == steps[1]
    layers = by_hand("model=efficientnet_lite0", "model.image_size=64")
    assert steps[0] == 3 * sum(layers.values()) - next(iter(layers.values()))


def test_a_frozen_part_runs_forward_alone_and_once_where_it_is_cached() -> None:
    layers = by_hand(*MOBILE)
    head = layers.pop("classifier")
    trunk = sum(layers.values())
    probe = (*MOBILE, "model.weights=none.safetensors", "finetune=linear_probe")

    assert counted(*probe, "augment=standard") == ImageFlops(trunk + 2 * head)  # no gradient of the features
    assert counted(*probe, "augment=none") == ImageFlops(2 * head, once=trunk, views=1)
    assert counted(*probe, *FLIP) == ImageFlops(2 * head, once=trunk, views=2)
    assert counted(*probe, *FLIP, "finetune.cache_features=false") == ImageFlops(trunk + 2 * head)


def test_the_more_trains_the_more_it_takes() -> None:
    some = [
        counted(
            *MOBILE,
            "model.weights=none.safetensors",
            *FLIP,
            "finetune=partial",
            f"finetune.trainable_groups={k}",
        )
        for k in (1, 2, 3)
    ]

    assert sorted(some, key=lambda flops: flops.step) == some
    assert sorted(some, key=lambda flops: -flops.once) == some
    assert all(one.step + one.once < counted(*MOBILE).step for one in some)


@given(
    step=st.floats(1, 1e9),
    once=st.floats(0, 1e9),
    views=st.integers(1, 4),
    num_train=st.integers(1, 10**6),
    num_images=st.integers(1, 10**8),
)
def test_what_is_affordable_is_the_inverse_of_the_total(
    step: float, once: float, views: int, num_train: int, num_images: int
) -> None:
    flops = ImageFlops(step, once, views)

    total = flops.total(num_images, num_train)
    assert flops.affordable(total, num_train) == pytest.approx(num_images, rel=1e-6)
    assert total <= (step + once) * num_images * (1 + 1e-9)


def test_a_view_in_the_cache_counts_once() -> None:
    assert ImageFlops(2, once=10, views=2).total(30, num_train=10) == 30 * 2 + 20 * 10
    assert ImageFlops(2, once=10, views=2).total(15, num_train=10) == 15 * 12


def test_a_network_that_cannot_be_counted_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no such kernel\non this device")

    def build(*args: object, **how: object) -> ImageClassifier:
        classifier = build_model(*args, **how)  # type: ignore[arg-type]
        classifier.network.forward = Broken().forward  # type: ignore[method-assign]
        return classifier

    monkeypatch.setattr(module, "build_model", build)
    config = compose_run(["model=keras_cnn", "model.image_size=40"])
    with pytest.raises(ModelError, match=r"keras_cnn cannot be counted: no such kernel$"):
        count_image_flops(config, 10, None)


def test_runs_record_images_and_operations_of_all_their_epochs(run: Run, tiny_config: Config) -> None:
    config = tiny_config("trainer.max_epochs=3", "data.samples_per_epoch=200")
    run(config, on_epoch=lambda report: "interrupt" if report.epoch == 0 else "continue")
    result, tracker = run(config)

    assert result.costs["train_images"] == tracker.summary["train_images"] == 600
    step = count_image_flops(config, 10, None).step
    assert result.costs["train_pflop"] == tracker.summary["train_pflop"] == pytest.approx(600 * step / 1e15)


def test_a_run_on_cached_features_counts_them_once(run: Run, tiny_config: Config) -> None:
    probe = ("model=efficientnet_lite0", "model.image_size=32", "finetune=linear_probe")
    config = tiny_config(*probe, *FLIP, "trainer.max_epochs=3")
    result, _ = run(config)

    flops = count_image_flops(config, 10, 2)
    assert flops.once > 100 * flops.step
    assert result.costs["train_pflop"] == pytest.approx((900 * flops.step + 600 * flops.once) / 1e15)
