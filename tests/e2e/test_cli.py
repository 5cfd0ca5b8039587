"""The commands as a user types them, in a process of their own or through `main`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from harness.cli.main import build_parser, main
from harness.config.compose import compose_run
from harness.config.schema import RunConfig, TrackingConfig
from harness.tracking.runs import get_run
from harness.tracking.store import open_store
from harness.training.result import Decision, EpochReport
from harness.training.train import train

SMALL = ("data=digits", "model=lenet", "data.max_train_samples=300", "trainer.max_epochs=2", "optim.lr=0.003")
SMALL += ("evaluation.pictures=none",)


def test_help_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = "{'torch', 'mlflow', 'optuna', 'timm', 'pytorch_lightning'}"
    code = f"import sys, harness.cli.main as c; c.build_parser(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_has_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--help"])
    shown = capsys.readouterr().out
    for command in (
        "sweep",
        "train",
        "data",
        "evaluate",
        "finalize",
        "ensemble",
        "compare",
        "export",
        "ui",
        "predict",
        "doctor",
    ):
        assert re.search(rf"^\s+{command}\s+\w+", shown, re.MULTILINE), command


def test_print_config_and_dry_run_train_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["kind"] == "lenet"
    assert main(["train", *SMALL, "--dry-run"]) == 0
    assert "62,006 trainable, 0 frozen" in capsys.readouterr().out
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.usefixtures("made_store")
def test_train_evaluate_compare_export_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The life of one run, by the commands alone."""
    assert main(["train", *SMALL]) == 0
    run_id = re.search(r"^run (\w{32})", capsys.readouterr().out, re.MULTILINE)
    assert run_id is not None
    assert get_run(TrackingConfig.at(), run_id[1]).val_digest  # without it, compare could not refuse
    assert main(["evaluate", "--run", run_id[1]]) == 0
    shown = capsys.readouterr().out
    assert "test/accuracy" in shown
    assert "the test split was read once for this run" in shown
    assert main(["evaluate", "--run", run_id[1]]) == 0
    assert "the test split was read 2 times for this run; this is reading 2" in capsys.readouterr().out
    assert main(["compare", run_id[1], "--output", str(tmp_path / "compare")]) == 0
    assert {file.suffix for file in (tmp_path / "compare").iterdir()} == {".csv", ".md", ".html"}
    assert main(["export", "--run", run_id[1], "--output", str(tmp_path / "exports")]) == 0
    assert "parity" in capsys.readouterr().out.lower()

    (bundle,) = (tmp_path / "exports").iterdir()
    assert "The test split was read 2 times for this run" in (bundle / "README.md").read_text("utf-8")
    from PIL import Image
    from sklearn.datasets import load_digits

    files = []
    for index in range(3):
        files.append(str(tmp_path / f"{index}.png"))
        Image.fromarray((load_digits().images[index] * 15.9).astype("uint8")).save(files[-1])
    assert main(["predict", str(bundle), *files]) == 0
    assert main(["predict", str(bundle), *files, str(tmp_path / "missing.png")]) == 2
    shown = capsys.readouterr().out
    assert all(Path(file).name in shown for file in files)
    assert "missing.png" in shown


def test_doctor_says_what_auto_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert re.search(r"^device +\w+, .*(fp32|bf16|fp16)", capsys.readouterr().out, re.MULTILINE)


def test_data_shows_counts_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "data=digits", "--output", str(tmp_path)]) == 0
    assert "digest" in capsys.readouterr().out
    assert (tmp_path / "samples.png").stat().st_size > 1000


@pytest.fixture
def interrupted_run() -> tuple[RunConfig, str]:
    """A run in the store that was stopped in its second epoch."""
    config = compose_run([*SMALL, "tracking.log_model=false"])
    tracker = open_store(config.tracking).start_run("mine", "digits", {"harness.kind": "train"})
    epochs: list[EpochReport] = []

    def count(report: EpochReport) -> Decision:
        epochs.append(report)
        return "continue"

    folder = Path(config.tracking.dir) / "checkpoints" / tracker.run_id
    train(config, tracker=tracker, checkpoint_dir=folder, on_epoch=count, stop_requested=lambda: bool(epochs))
    return config, tracker.run_id


@pytest.mark.usefixtures("made_store")
def test_an_interrupted_run_goes_on_by_its_name(
    interrupted_run: tuple[RunConfig, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, run_id = interrupted_run
    assert main(["train", "--resume", "mine"]) == 0
    assert capsys.readouterr().out.startswith("epoch 2/2")
    run = get_run(config.tracking, run_id)
    assert (run.status, run.params["optim.lr"]) == ("FINISHED", "0.003")
    points = open_store(config.tracking).client.get_metric_history(run_id, "train/accuracy")
    assert [point.step for point in points] == [0, 1]
    assert main(["train", "--resume", run_id]) == 2
    assert "there is nothing to go on with; to train it longer, add" in capsys.readouterr().err


@pytest.mark.usefixtures("made_store")
def test_what_cannot_be_resumed_is_told_in_a_line(
    interrupted_run: tuple[RunConfig, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, run_id = interrupted_run
    store = open_store(config.tracking)
    trial = store.start_run("trial", "digits", {"harness.kind": "trial", "harness.sweep": "mine"}).run_id
    empty = store.start_run("empty", "digits", {"harness.kind": "train"}).run_id
    with FileLock(Path(config.tracking.dir) / "checkpoints" / run_id / ".lock"):
        for arguments, message in (
            ([run_id], "is being trained by another process"),
            ([trial], "belongs to sweep 'mine': repeat `harness sweep`"),
            ([empty], "cannot be read, start a new run"),
            (["nobody"], "no run 'nobody' is recorded"),
            ([run_id, "optim.lr=1"], "optim.lr cannot change"),
        ):
            assert main(["train", "--resume", *arguments]) == 2
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert error.startswith("error: ")
            assert message in error


def test_a_run_is_recorded_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--mlruns", str(tmp_path / "elsewhere"), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["tracking"]["dir"] == str(tmp_path / "elsewhere")
