"""A quantised model in a bundle: what it holds, what is said of it, and when there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from harness.config.schema import ScratchModel
from harness.errors import ExportError
from harness.export import load_bundle, predict_files
from harness.export.bundle import ExportResult, Int8, export_checkpoint
from harness.export.manifest import CARD_FILE, INT8_FILE, ONNX_FILE, RunFacts
from tests.export.conftest import make_images, write_checkpoint

IMAGES = make_images(100)


def _export(folder: Path, max_loss: float) -> ExportResult:
    checkpoint = write_checkpoint(folder / "best.ckpt", ScratchModel(kind="lenet"))
    int8 = Int8(IMAGES, max_loss)
    return export_checkpoint(checkpoint, folder, name="small", val_images=IMAGES, facts=RunFacts(), int8=int8)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return _export(tmp_path_factory.mktemp("int8"), max_loss=1.0)


def _classes(file: Path) -> np.ndarray:
    pixels = np.ascontiguousarray(IMAGES.gather(np.arange(len(IMAGES))).transpose(0, 3, 1, 2))
    return onnxruntime.InferenceSession(file).run(None, {"images": pixels})[0].argmax(axis=1)


def test_what_it_loses_is_measured_and_said(quantised: ExportResult) -> None:
    facts = load_bundle(quantised.path).config.int8  # the checksums cover the file
    assert facts is not None
    fp32, int8 = _classes(quantised.path / ONNX_FILE), _classes(quantised.path / INT8_FILE)
    assert facts.accuracy == (int8 == IMAGES.labels).mean()
    assert facts.fp32_accuracy == (fp32 == IMAGES.labels).mean()
    assert facts.top1_agreement == (int8 == fp32).mean() > 0.8
    card = (quantised.path / CARD_FILE).read_text(encoding="utf-8")
    assert str(facts) in str(quantised)
    assert str(facts) in card


def test_it_is_small_and_its_weights_cannot_overflow(quantised: ExportResult) -> None:
    assert (quantised.path / INT8_FILE).stat().st_size < 0.5 * (quantised.path / ONNX_FILE).stat().st_size
    tensors = onnx.load(quantised.path / INT8_FILE).graph.initializer
    weights = [onnx.numpy_helper.to_array(one) for one in tensors if one.name.endswith("_quantized")]
    weights = [one for one in weights if one.dtype == np.int8]
    assert len(weights) == 5  # two convolutions and three dense layers
    assert all(np.abs(one.astype(int)).max() <= 64 for one in weights)


def test_it_predicts_when_it_is_asked_for(quantised: ExportResult, tmp_path: Path) -> None:
    Image.fromarray(IMAGES.gather(np.arange(1))[0]).save(tmp_path / "a.png")
    (plain,), (small,) = (
        predict_files(quantised.path, [tmp_path / "a.png"], int8=int8) for int8 in (False, True)
    )
    assert small.classes[0][0] == quantised.config.classes[_classes(quantised.path / INT8_FILE)[0]]
    assert small.classes != plain.classes


def test_a_bundle_without_one_says_so(bundle: Path) -> None:
    with pytest.raises(ExportError, match=r"has no model\.int8\.onnx: export it with --int8"):
        predict_files(bundle, [], int8=True)


def test_nothing_is_exported_if_too_much_is_lost(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"more than -200\.00% are lost.*or allow more: --int8 "):
        _export(tmp_path, max_loss=-2.0)
    assert not (tmp_path / "small").exists()
