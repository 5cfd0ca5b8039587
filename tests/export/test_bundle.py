from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import load_file, save

from harness.config.schema import EfficientNetLite0, FolderData, ModelConfig, ScratchModel, TimmModel
from harness.errors import CheckpointError, ExportError
from harness.export import bundle as bundling
from harness.export import load_bundle
from harness.export.bundle import ExportResult, bundle_name
from harness.export.checksums import write_checksums
from harness.export.manifest import CONFIG_FILE, WEIGHTS_FILE
from harness.export.weights import load_classifier
from harness.training.checkpoints.checkpoint import load_checkpoint, restore_classifier
from tests.export.conftest import CLASSES, MEAN, METRICS, STD, export, make_images, write_checkpoint

FILES = {"README.md", "SHA256SUMS", "config.json", "model.onnx", "model.safetensors"}


def test_holds_exactly_the_listed_files(exported: ExportResult) -> None:
    assert {path.name for path in exported.path.iterdir()} == FILES
    assert list(exported.path.parent.iterdir()) == [exported.path]


def test_every_file_can_be_read_by_whom_it_is_given_to(exported: ExportResult) -> None:
    modes = {path.stat().st_mode for path in exported.path.iterdir()}
    assert len(modes) == 1  # all as the umask says


def test_checksums_are_those_of_sha256sum(exported: ExportResult) -> None:
    lines = (exported.path / "SHA256SUMS").read_text().splitlines()
    expected = {
        name: hashlib.sha256((exported.path / name).read_bytes()).hexdigest()
        for name in FILES - {"SHA256SUMS"}
    }
    assert {line[66:]: line[:64] for line in lines} == expected
    assert all(line[64:66] == "  " for line in lines)


def test_safetensors_are_the_checkpoint_bit_for_bit(exported: ExportResult, checkpoint: Path) -> None:
    state = load_checkpoint(checkpoint).state_dict
    expected = {name.removeprefix("network."): tensor for name, tensor in state.items()}  # as timm has them
    actual = load_file(exported.path / "model.safetensors")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_reloaded_model_gives_the_same_logits(exported: ExportResult, checkpoint: Path) -> None:
    images = torch.from_numpy(make_images(5).images.transpose(0, 3, 1, 2).copy())
    original, reloaded = restore_classifier(load_checkpoint(checkpoint)), load_classifier(exported.path)
    assert not reloaded.training
    assert torch.equal(original(images), reloaded(images))


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_graph_takes_raw_pixels_in_batches_of_any_size(
    exported: ExportResult, checkpoint: Path, batch: int
) -> None:
    session = onnxruntime.InferenceSession(exported.path / "model.onnx")
    (graph_input,), (graph_output,) = session.get_inputs(), session.get_outputs()
    assert (graph_input.name, graph_input.type) == ("images", "tensor(uint8)")
    assert graph_input.shape[1:] == [3, 32, 32]
    assert graph_output.name == "logits"
    images = make_images(batch).images.transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        expected = restore_classifier(load_checkpoint(checkpoint))(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"images": images})[0], expected, atol=1e-4)


def test_config_says_what_the_checkpoint_knows(exported: ExportResult) -> None:
    config = json.loads((exported.path / "config.json").read_text(encoding="utf-8"))
    assert tuple(config["classes"]) == CLASSES
    assert config["data"] == {"name": "digits", "digest": "d1ce" * 16, "num_val_images": 300}
    assert config["model"] == {
        "kind": "lenet",
        "image_size": 32,
        "init": "default",
        "normalisation": "data",
        "drop_rate": 0.0,
    }
    assert config["preprocessing"]["mean"] == pytest.approx(MEAN)
    assert config["preprocessing"]["std"] == pytest.approx(STD)
    assert config["run"]["metrics"] == METRICS
    assert (config["epoch"], config["score"], config["num_parameters"]) == (3, 0.8125, 62_006)
    assert config["versions"]["torch"] == torch.__version__.split("+")[0]


def test_no_folder_of_this_machine_leaves_it(exported: ExportResult) -> None:
    for name in ("config.json", "README.md"):
        text = (exported.path / name).read_text(encoding="utf-8")
        assert "somewhere/private" not in text
        assert "mlruns" not in text


def test_parity_is_measured_on_256_images_and_single_ones(exported: ExportResult) -> None:
    parity = exported.config.parity
    assert parity.num_images == 256
    assert parity.batch_sizes[0] == 1
    assert len(parity.batch_sizes) > 3
    assert 0 <= parity.max_abs_difference <= parity.tolerance
    summary = str(exported)
    assert "256 validation images" in summary
    assert "top-1 agreement 100.00%" in summary


def test_altered_graph_fails_and_leaves_the_earlier_bundle(
    checkpoint: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight tensor, one percent off: the smallest realistic export bug."""
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    honest = bundling.export_onnx

    def altered(classifier: torch.nn.Module, path: Path, graph_input: object) -> None:
        honest(classifier, path, graph_input)  # type: ignore[arg-type]
        model = onnx.load(path)
        weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        weights.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * 1.01, weights.name)
        )
        onnx.save(model, path)

    monkeypatch.setattr(bundling, "export_onnx", altered)
    with pytest.raises(ExportError, match="disagree on 256 validation images") as caught:
        export(checkpoint, bundle.parent, name=bundle.name)
    assert "\n" not in str(caught.value)
    assert list(bundle.parent.iterdir()) == [bundle]
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_altered_weights_fail(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bundling.save_weights

    def altered(state_dict: dict[str, torch.Tensor], path: Path) -> None:
        honest({name: tensor.half().float() for name, tensor in state_dict.items()}, path)

    monkeypatch.setattr(bundling, "save_weights", altered)
    with pytest.raises(ExportError, match="safetensors"):
        export(checkpoint, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_newer_bundle_replaces_the_earlier_one(bundle: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other.ckpt", ScratchModel(kind="lenet"), seed=1)
    before = (bundle / "model.safetensors").read_bytes()
    result = export(other, bundle.parent, name=bundle.name)
    assert result.path == bundle
    assert (bundle / "model.safetensors").read_bytes() != before
    assert load_bundle(bundle).config == result.config
    assert list(bundle.parent.iterdir()) == [bundle]


def test_folder_that_is_no_bundle_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("three years")
    with pytest.raises(ExportError, match="is not a bundle"):
        export(checkpoint, tmp_path)
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "three years"


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", ".."])
def test_name_cannot_leave_the_folder(checkpoint: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="cannot be a bundle's name"):
        export(checkpoint, tmp_path / "exports", name=name)
    assert bundle_name(name) == bundle_name(bundle_name(name))
    assert list(tmp_path.iterdir()) == []


def test_output_folder_that_is_a_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "exports").write_text("")
    with pytest.raises(ExportError, match=r"cannot write to .*exports"):
        export(checkpoint, tmp_path / "exports")


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        export(tmp_path / "best.ckpt", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "model",
    [
        TimmModel(name="test_efficientnet", image_size=64),
        pytest.param(EfficientNetLite0(pretrained=False, image_size=64), marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_pretrained_backbone_exports_with_its_resizing(tmp_path: Path, model: ModelConfig) -> None:
    """32 -> 64 pixels inside the graph; lite0 also pads asymmetrically ("same")."""
    result = export(write_checkpoint(tmp_path / "best.ckpt", model), tmp_path)
    preprocessing = result.config.preprocessing
    assert (preprocessing.decode_size, preprocessing.image_size) == (32, 64)
    assert preprocessing.mean != pytest.approx(MEAN)  # the backbone's own, not the data's
    assert result.config.parity.top1_agreement == 1.0


def test_the_range_of_deep_pixels_is_exported(tmp_path: Path) -> None:
    data = FolderData(pixel_range={"uint16": (0, 4095)})
    lenet = ScratchModel(kind="lenet")
    result = export(write_checkpoint(tmp_path / "best.ckpt", lenet, data=data), tmp_path)
    assert load_bundle(result.path).config.preprocessing.pixel_range == {"uint16": (0.0, 4095.0)}
    assert "uint16 0 … 4095 to 0 … 255" in (result.path / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_speed_cnn_exports_with_its_whitening(tmp_path: Path) -> None:
    """Its constants are buffers: batch norm's scales of one, and filters that no optimiser has seen."""
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", ScratchModel(kind="speed_cnn"))
    weights = load_checkpoint(checkpoint).state_dict["network.whiten.weight"]
    result = export(checkpoint, tmp_path)
    assert result.config.parity.top1_agreement == 1.0
    reloaded = load_classifier(result.path)
    assert torch.equal(reloaded.get_buffer("network.whiten.weight"), weights)


@pytest.mark.slow
def test_timm_loads_a_bundle_of_its_own_network_with_its_preprocessing(tmp_path: Path) -> None:
    model = TimmModel(name="test_resnet", image_size=64)
    result = export(write_checkpoint(tmp_path / "best.ckpt", model), tmp_path / "exports")
    network = timm.create_model(f"local-dir:{result.path}", pretrained=True).eval()
    described = timm.data.resolve_model_data_config(network)
    ours = load_classifier(result.path)
    assert tuple(described["input_size"]) == (3, 64, 64)
    assert described["mean"] == pytest.approx(ours.preprocess.mean.flatten().tolist())
    assert described["std"] == pytest.approx(ours.preprocess.std.flatten().tolist())
    assert described["interpolation"] == ours.preprocess.interpolation
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(described[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(network((images - mean) / std), ours(images), atol=1e-4, rtol=1e-4)
    by_path = timm.create_model(
        "test_resnet", num_classes=len(CLASSES), checkpoint_path=str(result.path / WEIGHTS_FILE)
    )
    loaded = by_path.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())


def test_a_bundle_of_the_first_version_loads_still(bundle: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    expected = load_classifier(bundle)(images)
    state = {f"network.{name}": tensor for name, tensor in load_file(bundle / WEIGHTS_FILE).items()}
    (bundle / WEIGHTS_FILE).write_bytes(save(state))
    config = json.loads((bundle / CONFIG_FILE).read_text(encoding="utf-8"))
    for key in ("architecture", "num_classes", "label_names", "model_args", "pretrained_cfg"):
        del config[key]
    config["format_version"] = 1
    (bundle / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    write_checksums(bundle)
    assert torch.equal(load_classifier(bundle)(images), expected)
