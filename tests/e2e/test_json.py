"""`--json`: every command prints one document on standard output, and nothing else there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.cli.documents import Document
from harness.cli.main import main

SMALL = ("data=digits", "model=lenet", "data.max_train_samples=300", "trainer.max_epochs=1", "optim.lr=0.003")
SMALL += ("evaluation.pictures=none",)
ONE_EPOCH = "sweep.compute_per_trial=null"  # the epochs decide how long a trial trains
SWEEP = (*SMALL, "finetune=full", "sweep.name=mine", "sweep.num_trials=1", "sweep.slots=1", ONE_EPOCH)
SWEEP += ("sweep.replicate.seeds=0",)


def document(capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    """Run a command and return the document that is all of its standard output, children's included."""
    capfd.readouterr()
    assert main([*words, "--json"]) == code
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert found["exit_code"] == code
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("made_store")
def test_the_life_of_a_run_in_documents(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = document(capfd, "train", *SMALL)
    assert (run["schema"], run["status"], run["best_epoch"]) == ("harness.train/1", "finished", 1)
    assert run["score"] == run["metrics"]["val/accuracy"]

    scored = document(capfd, "evaluate", "--run", run["run_id"], "--split", "val")
    assert (scored["schema"], scored["split"], scored["readings"]) == ("harness.evaluate/1", "val", None)
    assert scored["metrics"]["val/accuracy"] == pytest.approx(run["score"])

    table = document(capfd, "compare", run["run_id"], "--output", str(tmp_path / "compare"))
    assert (table["schema"], len(table["runs"])) == ("harness.compare/1", 1)
    assert table["runs"][0]["val/accuracy"] == pytest.approx(run["score"])
    assert set(table["runs"][0]) == set(table["columns"])

    bundle = document(capfd, "export", "--run", run["run_id"], "--output", str(tmp_path / "exports"))
    assert (bundle["schema"], bundle["run_id"]) == ("harness.export/1", run["run_id"])
    assert "model.onnx" in bundle["files"]
    assert Path(bundle["path"]).is_dir()


@pytest.mark.slow
@pytest.mark.usefixtures("made_store")
def test_a_sweep_its_status_and_the_list_in_documents(capfd: pytest.CaptureFixture[str]) -> None:
    """The trials run in processes of their own, whose output must not mix with the document."""
    sweep = document(capfd, "sweep", *SWEEP)
    assert (sweep["schema"], sweep["name"], sweep["outcome"]) == ("harness.sweep/1", "mine", "complete")
    (trial,) = sweep["trials"]
    assert trial == sweep["best"]
    assert (trial["state"], trial["epochs_done"], trial["best_epoch"]) == ("complete", 1, 1)
    assert 0 < sweep["test"]["metrics"]["test/accuracy"] < 1
    assert "read once" in sweep["test"]["readings"]

    assert sweep["sentence"]
    assert trial["replicate_of"] is None

    steps = document(capfd, "next", "mine")
    assert (steps["schema"], steps["sweep"], steps["state"]) == ("harness.next/1", "mine", "complete")
    assert {"finalize", "export", "compare", "extend"} <= {step["kind"] for step in steps["steps"]}
    assert all(step["command"].startswith("harness ") and step["reason"] for step in steps["steps"])
    (final,) = [step["command"] for step in steps["steps"] if step["kind"] == "finalize"]
    done = document(capfd, *shlex.split(final)[1:])
    assert (done["trial"], done["reading"]) == (0, 1)
    assert done["metrics"]["test/accuracy"] == sweep["test"]["metrics"]["test/accuracy"]

    status = document(capfd, "sweep", "--status", "mine")
    assert (status["schema"], status["state"], status["num_ended"]) == (
        "harness.sweep-status/1",
        "complete",
        1,
    )
    assert status["trials"] == [trial | {"is_worked_on": False}]
    listed = document(capfd, "sweep", "list")
    assert [one["name"] for one in listed["sweeps"]] == ["mine"]
    assert listed["sweeps"][0]["best"] == trial


def test_data_and_doctor_in_documents(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = document(capfd, "data", "data=digits", "--output", str(tmp_path))
    assert data["schema"] == "harness.data/1"
    assert sum(data["num_images"].values()) == 1797
    assert sum(one["train"] for one in data["classes"]) == data["num_images"]["train"]
    assert document(capfd, "data", "data=digits", "--features")["entries"] == []
    assert "device" in document(capfd, "doctor")["facts"]


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["train", "model=lenett"], "ConfigError", "did you mean 'lenet'?"),
        (["compare"], "TrackingError", "nothing is recorded"),
        (["sweep", "--status"], "SweepError", "no sweep has been run yet"),
    ],
)
def test_a_mistake_is_a_document_too(
    capfd: pytest.CaptureFixture[str], words: list[str], kind: str, message: str
) -> None:
    found = document(capfd, *words, code=2)
    assert (found["schema"], found["error"]["kind"]) == ("harness.error/1", kind)
    assert message in found["error"]["message"]


@pytest.mark.parametrize("words", [["compare", "--sort"], ["train", "--dry-run"], ["frobnicate"]])
def test_a_command_line_that_cannot_be_read_is_a_document(
    capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*words, "--json"])
    assert left.value.code == 2
    shown = capfd.readouterr()
    assert json.loads(shown.out)["error"]["kind"] == "UsageError"
    assert json.loads(shown.out)["error"]["message"] in shown.err


def test_a_document_can_be_printed_in_any_encoding() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "train", "model=grün", "--json"],
        capture_output=True,
        env=os.environ | {"LANG": "C", "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 2
    assert "grün" in json.loads(done.stdout.decode("ascii"))["error"]["message"]


def test_what_json_lacks_is_null() -> None:
    text = Document("s/1", {"a": float("nan"), "b": [float("-inf"), 1.5], "c": {"d": Path("x")}}).to_json()
    assert json.loads(text) == {"schema": "s/1", "exit_code": 0, "a": None, "b": [None, 1.5], "c": {"d": "x"}}
    with pytest.raises(TypeError, match="object has no place in a document"):
        Document("s/1", {"a": object()}).to_json()
