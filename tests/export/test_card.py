from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from harness.export import predict_files
from harness.export.bundle import ExportResult
from harness.export.card import render_card
from harness.export.manifest import RunFacts
from tests.export.conftest import CLASSES, make_images


@pytest.fixture
def card(exported: ExportResult) -> str:
    return (exported.path / "README.md").read_text(encoding="utf-8")


def test_front_matter_is_what_the_hub_reads(card: str) -> None:
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pipeline_tag"] == "image-classification"
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"]["split"] == "validation"
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "accuracy": 0.8125,
        "f1": 0.8,
        "auc": 0.95,
    }


def test_every_class_stands_in_order(card: str) -> None:
    assert re.findall(r"^\d+\. `(.*)`$", card, re.MULTILINE) == list(CLASSES)


def test_says_what_was_not_measured(card: str) -> None:
    assert "The test split was not evaluated." in card
    assert "as the best of 12 trials of the sweep `lr-and-depth`" in card
    assert "| test |" not in card
    assert "stratified subset of 500 training images" in card


def test_test_metrics_have_a_row_of_their_own(exported: ExportResult) -> None:
    run = RunFacts(metrics={"val/accuracy": 0.9, "test/accuracy": 0.89, "test/recall": 0.7})
    card = render_card(exported.config.model_copy(update={"run": run}))
    assert "| split | accuracy | recall |" in card
    assert "| validation | 0.9000 |  |" in card
    assert "| test | 0.8900 | 0.7000 |" in card
    assert "chose nothing by the test split; how often it was read was not recorded" in card
    assert "sweep" not in card


def test_calibration_is_told_where_it_was_measured(exported: ExportResult, card: str) -> None:
    assert "no calibration" in card
    run = RunFacts(metrics={"test/ece": 0.05, "test/ece_calibrated": 0.01, "val/temperature": 1.5})
    measured = render_card(exported.config.model_copy(update={"run": run}))
    assert "no calibration" not in measured
    assert "| test | 0.0500 |" in measured
    assert "fitted on the validation images, 1.500" in measured
    assert "on the test split the ece is 0.0100 then" in measured


def test_tells_the_exported_network_from_its_augmented_scores(exported: ExportResult, card: str) -> None:
    assert "augmentation" not in card
    run = RunFacts(metrics={"test/accuracy": 0.94, "test/accuracy_no_tta": 0.93})
    training = exported.config.training | {"evaluation": {"tta": "flip_shift"}, "trainer": {"select": "last"}}
    augmented = render_card(exported.config.model_copy(update={"run": run, "training": training}))
    assert "| test | 0.9400 | 0.9300 |" in augmented
    assert "test-time augmentation (`flip_shift`" in augmented
    assert "The last epoch was kept. The program chose nothing by the test split" in augmented
    assert "flatter" not in augmented


def test_nothing_is_left_unfilled(card: str) -> None:
    assert not re.search(r"\$|\bNone\b", card.replace("[None]", ""))


def test_examples_run_as_printed(
    card: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(bundle)
    Image.fromarray(make_images(1).images[0]).save("image.png")
    expected = predict_files(".", ["image.png"])[0].classes[0][0]
    with_onnx, with_torch = blocks
    exec(with_onnx, {})
    assert capsys.readouterr().out.strip() == expected
    variables: dict[str, Any] = {}
    exec(with_torch, variables)
    assert variables["logits"].shape == (1, len(CLASSES))


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "was read once for this sweep, after everything"),
        (3, "was read 3 times for this sweep (its record says"),
    ],
)
def test_says_how_often_the_test_split_was_read(exported: ExportResult, count: int, words: str) -> None:
    run = RunFacts(metrics={"test/accuracy": 0.89}, sweep="s", test_readings=count)
    assert words in render_card(exported.config.model_copy(update={"run": run}))


def test_says_by_which_metric_the_epoch_was_chosen(exported: ExportResult) -> None:
    config = exported.config
    trainer = config.training["trainer"] | {"monitor": {"metric": "val/f1", "direction": "maximize"}}
    chosen = config.model_copy(update={"training": config.training | {"trainer": trainer}})

    assert "chosen by validation f1" in render_card(chosen)
    del trainer["monitor"]  # as bundles of an earlier version have it
    assert "chosen by validation accuracy" in render_card(chosen)
