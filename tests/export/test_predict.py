from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data.decoding.decode import decode_image
from harness.errors import DataError, ExportError
from harness.export import load_bundle, predict_files
from harness.export.checksums import write_checksums
from harness.export.weights import load_classifier
from harness.training.checkpoints.checkpoint import load_checkpoint, restore_classifier
from tests.export.conftest import CLASSES, make_images


@pytest.fixture
def odd_files(tmp_path: Path) -> list[Path]:
    """One file per way in which an image differs from 32x32 RGB."""
    folder = tmp_path / "odd"
    folder.mkdir()
    colours = Image.fromarray(make_images(1, side=64).images[0])
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation: turned by a quarter
    deep = (np.asarray(colours)[..., 0].astype(np.uint16)) * 257
    colours.resize((32, 32)).save(folder / "plain.png")
    colours.convert("L").save(folder / "grey.png")
    colours.convert("P").save(folder / "palette.png")
    Image.fromarray(deep).save(folder / "16-bit.png")
    translucent = colours.copy()
    translucent.putalpha(colours.convert("L"))
    translucent.save(folder / "rgba.png")
    colours.resize((50, 17)).save(folder / "wide.png")
    colours.resize((40, 90)).save(folder / "turned.jpg", exif=rotated)
    colours.convert("1").save(folder / "чёрно-белый.png")
    return sorted(folder.iterdir())


def test_odd_files_get_the_classes_that_torch_gives(
    bundle: Path, checkpoint: Path, odd_files: list[Path]
) -> None:
    classifier = restore_classifier(load_checkpoint(checkpoint))
    pixels = np.stack([decode_image(path, 32) for path in odd_files]).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        expected = classifier(torch.from_numpy(pixels)).softmax(1).numpy()
    predictions = predict_files(bundle, odd_files, top_k=len(CLASSES))
    assert [prediction.file for prediction in predictions] == odd_files
    for prediction, probabilities in zip(predictions, expected, strict=True):
        assert [name for name, _ in prediction.classes] == [CLASSES[k] for k in np.argsort(-probabilities)]
        actual = dict(prediction.classes)
        np.testing.assert_allclose([actual[name] for name in CLASSES], probabilities, atol=1e-5)


def test_runtimes_agree(bundle: Path, odd_files: list[Path]) -> None:
    pixels = np.stack([decode_image(path, 32) for path in odd_files]).transpose(0, 3, 1, 2).copy()
    with torch.inference_mode():
        by_torch = load_classifier(bundle)(torch.from_numpy(pixels)).argmax(1)
    by_onnx = predict_files(bundle, odd_files)
    assert [p.classes[0][0] for p in by_onnx] == [CLASSES[k] for k in by_torch]
    assert {name for p in by_onnx for name, _ in p.classes} <= set(CLASSES)


def test_more_files_than_a_batch_keep_their_order(bundle: Path, odd_files: list[Path]) -> None:
    many = predict_files(bundle, odd_files * 9)
    single = {path: predict_files(bundle, [path])[0].classes[0][0] for path in odd_files}
    assert [prediction.classes[0][0] for prediction in many] == [single[path] for path in odd_files * 9]


def test_unreadable_files_do_not_stop_the_rest(bundle: Path, odd_files: list[Path], tmp_path: Path) -> None:
    fake = tmp_path / "text.png"
    fake.write_text("no image")
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(odd_files[0].read_bytes()[:60])
    files = [tmp_path / "missing.png", odd_files[0], fake, truncated, odd_files[1]]
    predictions = predict_files(bundle, files)
    readable = [row for row, prediction in enumerate(predictions) if prediction.error is None]
    assert readable == [1, 4]
    assert predictions.failed
    assert not predict_files(bundle, odd_files).failed
    assert predictions[0].error == "no such file"
    table = str(predictions).splitlines()
    assert len(table) == len(files)
    assert "not read: no such file" in table[0]
    assert "%" in table[1]


def test_a_folder_is_predicted_file_by_file(bundle: Path, odd_files: list[Path]) -> None:
    folder = odd_files[0].parent
    (folder / "deeper").mkdir()
    (folder / "deeper" / "bare").write_bytes(odd_files[0].read_bytes())
    (folder / "notes.txt").write_text("no image")
    predictions = predict_files(bundle, [odd_files[1], folder])
    assert [prediction.file for prediction in predictions] == [
        odd_files[1],
        *odd_files,
        folder / "deeper" / "bare",
    ]
    assert not predictions.failed
    assert str(predictions).splitlines()[-1] == f"not used: 1 no image ({folder / 'notes.txt'})"
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="there are no images in"):
        predict_files(bundle, [folder / "empty"])


def test_a_bundle_scales_deep_files_as_in_training(bundle: Path, tmp_path: Path) -> None:
    dark = np.linspace(0, 4095, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    Image.fromarray((dark // 257).astype(np.uint8)).save(tmp_path / "eight.png")
    content = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    content["preprocessing"]["pixel_range"] = {"uint16": [0, 65535]}
    (bundle / "config.json").write_text(json.dumps(content), encoding="utf-8")
    write_checksums(bundle)
    predictions = predict_files(bundle, [tmp_path / "dark.png", tmp_path / "eight.png"], top_k=1)
    (name, share), (same, other) = (prediction.classes[0] for prediction in predictions)
    assert name == same
    assert share == pytest.approx(other, abs=0.02)


def test_only_unreadable_files(bundle: Path, tmp_path: Path) -> None:
    assert predict_files(bundle, [tmp_path / "missing.png"])[0].classes == ()
    assert predict_files(bundle, []) == []


def test_top_k(bundle: Path, odd_files: list[Path]) -> None:
    one, all_of_them = (predict_files(bundle, odd_files[:1], top_k=k)[0].classes for k in (1, 99))
    assert len(one) == 1
    assert len(all_of_them) == len(CLASSES)
    assert sum(probability for _, probability in all_of_them) == pytest.approx(1.0)
    with pytest.raises(ExportError, match="top_k=0"):
        predict_files(bundle, odd_files, top_k=0)


@pytest.mark.parametrize("name", ["config.json", "model.onnx", "model.safetensors", "README.md"])
def test_damaged_file_is_named(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"{name} is damaged") as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "config.json"])
def test_missing_or_unlisted_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(ExportError, match=f"{name} cannot be read"):
        load_bundle(bundle)
    sums = bundle / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if name not in line))
    with pytest.raises(ExportError, match=f"{name} is not listed"):
        load_bundle(bundle)


@pytest.mark.parametrize("content", ["not a list\n", f"{'0' * 64}  ../secret\n"])
def test_damaged_list_of_checksums(bundle: Path, content: str) -> None:
    (bundle / "SHA256SUMS").write_text(content)
    with pytest.raises(ExportError, match="SHA256SUMS is damaged"):
        load_bundle(bundle)


def test_folder_that_is_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ExportError, match="is not a bundle"):
            load_bundle(folder)


def test_needs_no_torch(bundle: Path, odd_files: list[Path]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from harness.export import predict_files\n"
        "print(predict_files(sys.argv[1], sys.argv[2:])[0].classes[0][0])"
    )
    command = [sys.executable, "-X", "utf8", "-c", code, str(bundle), str(odd_files[0])]
    answer = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    assert answer.strip() == predict_files(bundle, odd_files[:1])[0].classes[0][0]
