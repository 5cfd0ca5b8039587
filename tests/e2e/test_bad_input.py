"""What a user gets for a mistake: exit code 2 and one line that names the fault, never a traceback."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.main import main

LENET = ("train", "model=lenet", "data=digits", "evaluation.pictures=none")


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail, and return its one line."""
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


@pytest.mark.usefixtures("made_store")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*LENET, "optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'lr'"),
        (["train", "model=lenett"], "did you mean 'lenet'"),
        ([*LENET, "optim.schedule.kind=cosin"], "did you mean 'cosine'"),
        ([*LENET, "data.batch_size=2000"], "larger than the training split of 1294 images"),
        ([*LENET, "model.image_size=8"], "image_size"),
        (
            ["train", "data=digits", "finetune=partial", "finetune.trainable_groups=99"],
            "use 8 (all of its depth groups) or fewer",
        ),
        (["train", "model=timm", "data=digits", "model.name=resnet1818"], "no model named 'resnet1818'"),
        (["train", "model=lenet", "data=cifar10"], "CIFAR-10"),
        (["train", "model=lenet", "data=folder"], "data.dir"),
        ([*LENET, "trainer.device=mps"], "trainer.device=mps: this machine has none"),
        (["sweep", "sweep=defualt"], "did you mean 'default'"),
        (["sweep", "data=digits", "sweep.name=a/b"], "sweep.name='a/b'"),
        (["export", "--run", "0123456789abcdef"], "no run '0123456789abcdef'"),
        (["evaluate"], "sweep"),
        (["compare", "--sweep", "nonesuch"], "nonesuch"),
        (["predict", "no/such/bundle", "x.png"], "no/such/bundle"),
    ],
)
def test_a_mistake_costs_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in complaint(arguments, capsys)


@pytest.mark.parametrize("command", ["export", "evaluate", "compare"])
def test_nothing_is_recorded_yet(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing is recorded" in complaint([command], capsys)


@pytest.mark.usefixtures("made_store")
def test_a_timm_model_without_its_hub(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = complaint(
        ["train", "data=digits", "model=timm", "model.name=resnet10t", "model.pretrained=true"], capsys
    )
    assert "model.weights=" in line


def test_a_run_store_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "occupied").write_text("a file, where a folder should be")
    line = complaint([*LENET, f"tracking.dir={tmp_path}/occupied/mlruns"], capsys)
    assert "cannot be written" in line


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path)


def test_folders_that_are_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "lonely" / "cats" / "1.png")
    (tmp_path / "empty" / "cats").mkdir(parents=True)
    (tmp_path / "empty" / "dogs").mkdir()
    for name in ("cats", "dogs"):
        broken = tmp_path / "broken" / name / "1.png"
        broken.parent.mkdir(parents=True)
        broken.write_text("no picture")
    faults = {"lonely": "one class", "empty": "no image", "broken": "none of the 2 images"}
    for folder, message in faults.items():
        line = complaint(["data", "data=folder", f"data.dir={tmp_path}/{folder}"], capsys)
        assert re.search(message, line)


@pytest.mark.usefixtures("made_store")
def test_an_unknown_run_and_a_run_without_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    diverging = ["optim=sgd", "optim.lr=1e30", "trainer.max_epochs=1", "tracking.run_name=bad"]
    assert "lower optim.lr" in complaint([*LENET, *diverging], capsys)
    assert "no run 'nonesuch'" in complaint(["export", "--run", "nonesuch"], capsys)
    assert "checkpoint" in complaint(["export", "--run", "bad"], capsys)
