"""One reader of weights: whatever a file is, it is loaded whole, or one line says what it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.config.schema import TimmModel
from harness.errors import ModelError
from harness.models import build_model
from harness.models.weight_files import read_state_dict

State = dict[str, Tensor]


def state_of(name: str = "test_resnet") -> State:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=7).state_dict()


def load(path: Path | str, name: str = "test_resnet") -> State:
    return build_model(TimmModel(name=name, weights=str(path), image_size=32), 10).network.state_dict()


def refusal(path: Path | str, name: str = "test_resnet") -> str:
    with pytest.raises(ModelError) as caught:
        load(path, name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"model.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"net.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"network.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}, "epoch": 3},
        lambda state: {
            "state_dict": {f"classifier.network.{name}": tensor for name, tensor in state.items()}
        },
    ],
    ids=["model", "net", "network", "module in a checkpoint", "inside model", "our own checkpoint"],
)
def test_what_wraps_the_names_is_taken_off(tmp_path: Path, wrap: Callable[[State], object]) -> None:
    saved = state_of()
    torch.save(wrap(saved), tmp_path / "weights.pth")
    loaded = load(tmp_path / "weights.pth")
    assert {name for name in saved if not torch.equal(saved[name], loaded[name])} == {
        "fc.weight",
        "fc.bias",
    } - {name for name in loaded if name in saved and saved[name].shape == loaded[name].shape}


def test_a_bundles_folder_is_a_source(tmp_path: Path) -> None:
    saved = state_of()
    save_file({f"network.{name}": tensor for name, tensor in saved.items()}, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path)["layer1.0.conv1.weight"], saved["layer1.0.conv1.weight"])


def test_the_home_folders_sign_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(state_of(), tmp_path / "weights.pth")
    load("~/weights.pth")


@pytest.mark.parametrize(
    ("content", "nature"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"<HTML>404</HTML>", "web page"),
        (b"hello", "not a file of weights"),
        (b'\x20\x00\x00\x00\x00\x00\x00\x00{"a":', "damaged safetensors"),
    ],
)
def test_what_is_no_file_of_weights_is_said(tmp_path: Path, content: bytes, nature: str) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    message = refusal(tmp_path / "weights.pth")
    assert nature in message
    assert message.startswith("model.weights=")


@pytest.mark.parametrize(
    ("content", "nature"),
    [
        (nn.Linear(2, 2), "pickle of Python objects, not a state dict"),
        ([1, 2, 3], "pickle of a list, not a state dict"),
        ({"epoch": 3, "lr": 0.1}, "holds no state dict: its keys are 'epoch', 'lr'"),
    ],
    ids=["a whole module", "a list", "a log"],
)
def test_a_pickle_that_is_no_state_dict_is_said(tmp_path: Path, content: object, nature: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert nature in refusal(tmp_path / "weights.pth")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    state = state_of()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = bad
    torch.save(state, tmp_path / "weights.pth")
    assert "NaN or infinite values in 1 of" in (message := refusal(tmp_path / "weights.pth"))
    assert "layer2.0.conv1.weight" in message


def test_one_missing_scale_of_a_norm_is_refused(tmp_path: Path) -> None:
    state = state_of()
    del state["layer2.0.bn1.weight"]
    torch.save(state, tmp_path / "weights.pth")
    assert "1 of its" in (message := refusal(tmp_path / "weights.pth"))
    assert "layer2.0.bn1.weight" in message


def test_weights_of_another_architecture_whose_shapes_all_fit_are_refused(tmp_path: Path) -> None:
    """Every tensor of the network is there, and squeeze-and-excitation besides, which it would leave out."""
    torch.save(timm.create_model("seresnet18").state_dict(), tmp_path / "weights.pth")
    message = refusal(tmp_path / "weights.pth", "resnet18")
    assert "tensors of the file are not the network's (layer1.0.se.fc1.weight" in message


def test_what_lies_beside_the_network_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({**state_of(), "decoder.weight": torch.ones(2, 2)}, tmp_path / "weights.pth")
    with caplog.at_level(logging.WARNING):
        load(tmp_path / "weights.pth")
    assert "1 tensors are not the network's and are left out (decoder.weight)" in caplog.text


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    plain, averaged = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "both.pth")
    assert read_state_dict(tmp_path / "both.pth")["w"] == 1
