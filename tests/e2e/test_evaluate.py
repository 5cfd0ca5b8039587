"""`harness evaluate RUN --split val|test|FOLDER`, from the command to what the run store holds afterwards."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.analysis.evaluation import evaluate
from harness.cli.main import main
from harness.config.schema import DigitsData, TrackingConfig
from harness.data import load_splits
from harness.data.held_out import load_test
from harness.data.splits import ImageArrays
from harness.tracking.artifacts import load_predictions, read_artifact
from harness.tracking.readings import count_readings
from harness.tracking.runs import get_run
from tests.e2e.test_bad_input import complaint

SMALL = ("data=digits", "model=lenet", "data.max_train_samples=300", "trainer.max_epochs=2", "optim.lr=0.003")
CLOSER = (
    "roc.png",
    "precision_recall.png",
    "reliability.png",
    "confused.png",
    "confusion.html",
    "confusion_percent.png",
)
ALWAYS = ("summary.md", "classes.csv", "confused.csv", "confusion.png", "confusion.json")


def write_tree(root: Path, arrays: ImageArrays, per_class: int) -> Path:
    """Write the first images of each class as PNG files, which keep every pixel."""
    for label in np.unique(arrays.labels):
        (root / str(label)).mkdir(parents=True)
        chosen = np.flatnonzero(arrays.labels == label)[:per_class]
        for number, pixels in enumerate(arrays.gather(chosen)):
            Image.fromarray(pixels).save(root / str(label) / f"{number}.png")
    return root


@pytest.mark.usefixtures("made_store")
def test_a_run_that_is_trained_by_a_command_is_looked_at_closely() -> None:
    assert main(["train", *SMALL, "tracking.run_name=mine", "tracking.log_model=false"]) == 0
    tracking = TrackingConfig.at()
    run = get_run(tracking, "mine")
    for name in (*ALWAYS, *CLOSER):
        assert read_artifact(tracking, run, f"val/{name}"), name
    assert read_artifact(tracking, run, "pictures/val/highest_loss.png")


@pytest.mark.usefixtures("made_store")
@pytest.mark.slow
def test_a_run_is_evaluated_on_each_split_and_on_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SMALL, "evaluation.pictures=none"]) == 0
    found = re.search(r"^run (\w{32})", capsys.readouterr().out, re.MULTILINE)
    assert found is not None
    run_id, tracking = found[1], TrackingConfig.at()
    run = get_run(tracking, run_id)
    for name in ALWAYS:
        assert read_artifact(tracking, run, f"val/{name}"), name

    # What is kept of the predictions gives the recorded metrics again.
    again = evaluate(load_predictions(tracking, run)).metrics
    assert {name: run.metrics[f"best/val/{name}"] for name in again} == pytest.approx(again, abs=1e-5)

    assert main(["evaluate", run_id]) == 0  # the test split, by default
    shown = capsys.readouterr().out
    assert "the test split was read once for this run" in shown
    run = get_run(tracking, run_id)
    assert run.metrics["test/temperature"] == run.metrics["best/val/temperature"]
    for name in (*ALWAYS, *CLOSER):
        assert read_artifact(tracking, run, f"test/{name}"), name

    data = DigitsData()
    splits = load_splits(data)
    folder = write_tree(tmp_path / "one shelf", splits.val, 5)
    assert main(["evaluate", run_id, "--split", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "50 of 50 images are validation images of the run itself" in shown
    assert "test split was read" not in shown
    run = get_run(tracking, run_id)
    (name,) = (key for key in run.metrics if re.fullmatch(r"folder/one-shelf-\w{8}/accuracy", key))
    of_folder = load_predictions(tracking, run, name.removesuffix("/accuracy"))
    of_val = load_predictions(tracking, run)
    row = {int(index): place for place, index in enumerate(of_val.index)}
    for label in range(10):
        chosen = np.flatnonzero(splits.val.labels == label)[:5]
        expected = of_val.predicted[[row[int(splits.val.indices[position])] for position in chosen]]
        np.testing.assert_array_equal(of_folder.predicted[of_folder.labels == label], expected)
    assert run.metrics[name] == pytest.approx(of_folder.correct.mean())
    assert not [key for key in run.results if key.startswith("folder/")], "compare shows val and test alone"

    # Test images in a folder are test images.
    assert (
        main(["evaluate", "--run", run_id, "--split", str(write_tree(tmp_path / "b", load_test(data), 2))])
        == 0
    )
    shown = capsys.readouterr().out
    assert "20 of 20 images are test images of the run itself" in shown
    assert "the test split was read 2 times for this run; this is reading 2" in shown
    assert count_readings(get_run(tracking, run_id).tags) == 2

    # What cannot be evaluated is one line, and is no reading.
    (folder / "9").rename(folder / "nine")
    assert "lacks 9 and has nine, which the run does not know" in complaint(
        ["evaluate", run_id, "--split", str(folder)], capsys
    )
    assert "neither val nor test nor a folder" in complaint(["evaluate", run_id, "--split", "tset"], capsys)
    assert "name one run" in complaint(["evaluate", run_id, "--run", "other"], capsys)
    for part in ("train", "test"):
        write_tree(tmp_path / "parts" / part, splits.val, 1)
    assert "name one of these folders" in complaint(
        ["evaluate", run_id, "--split", str(tmp_path / "parts")], capsys
    )
    assert count_readings(get_run(tracking, run_id).tags) == 2
