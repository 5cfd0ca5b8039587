"""`harness rerun`: a recorded run is trained again as it was; what differs from then is said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.config.schema import RunConfig, TrackingConfig
from harness.errors import ConfigError, HarnessError, RerunError
from harness.tracking import names
from harness.tracking.artifacts import RecordedCode
from harness.tracking.checkout import source_digest
from harness.tracking.environment import capture_environment
from harness.tracking.runs import RunRecord, get_run
from harness.training.commands import rerun as reruns
from harness.training.commands.rerun_setup import find_code, machine_differences, newer_settings, settle

SMALL = (
    "data=digits", "model=lenet", "data.max_train_samples=300", "optim.lr=0.003", "tracking.log_model=false",
    "evaluation.pictures=none", "trainer.max_epochs=2", "trainer.precision=fp32",
)  # fmt: skip
RUN = RunRecord(
    run_id="a" * 32, name="one", experiment_id="1", kind="train", status="FINISHED", parent_run_id=None,
    sweep=None, trial=None,
    params={"machine.device": "cpu", "machine.precision": "fp32", "machine.threads": "3"},
    metrics={"epoch": 1.0}, tags={}, start_s=0.0, end_s=1.0, artifact_uri="",
)  # fmt: skip


def settled(
    config: RunConfig, *overrides: str, run: RunRecord = RUN, pruned: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    return settle(TrackingConfig(dir="runs"), run, config.to_dict(), overrides, is_pruned_after=pruned)


def test_what_the_machine_had_settled_is_kept_and_the_test_split_stays_unread(
    tiny_config: Callable[..., RunConfig],
) -> None:
    config = tiny_config("evaluate_test=true", "seed=7")
    values, notes = settled(config, pruned=3)
    trainer = values["trainer"]
    assert (trainer["device"], trainer["precision"], trainer["threads"]) == ("cpu", "fp32", 3)
    assert (trainer["end_after"], values["seed"], values["evaluate_test"]) == (3, 7, False)
    assert values["tracking"]["dir"] == str(Path("runs").resolve())
    assert notes == []
    assert config.to_dict()["trainer"]["threads"] is None  # the recorded configuration is not touched


def test_what_was_changed_or_is_not_at_hand_is_said(tiny_config: Callable[..., RunConfig]) -> None:
    _, notes = settled(tiny_config(), "trainer.threads=1", "data.cache_dir=elsewhere")
    assert notes == ["trainer.threads: 3 then, 1 now (as asked)"]
    resumed = replace(
        RUN, tags={f"{names.CHANGED}trainer.threads": "2", f"{names.CHANGED}trainer.max_epochs": "9"}
    )
    assert settled(tiny_config(), run=resumed)[1] == [
        "trainer.threads: was changed when the run was resumed, to 2"
    ]
    absent = replace(RUN, params={**RUN.params, "machine.device": "mps"})
    values, notes = settled(tiny_config(), run=absent)
    assert values["trainer"]["device"] == "auto"
    assert notes[0].startswith("device: mps in fp32 then, which this machine lacks; ")
    with pytest.raises(ConfigError, match=r"as it was configured: optim\.lr cannot change; valid here: data"):
        settled(tiny_config(), "optim.lr=1")


def test_other_packages_and_another_cpu_are_said() -> None:
    now = capture_environment()
    then = json.loads(json.dumps({"packages": now.packages, "python": now.python, "cpu": now.cpu}))
    assert machine_differences(then, now) == []
    then["packages"] |= {"torch": "1.0", "harness": "0"}
    then |= {"cpu": "Another", "device": "cpu"}
    packages, cpu = machine_differences(then, replace(now, cpu="This"))
    assert re.fullmatch(r"packages: torch 1\.0 then, \S+ now", packages)
    assert cpu == "cpu: Another then, This now"


def test_settings_that_are_newer_than_the_run_are_said(tiny_config: Callable[..., RunConfig]) -> None:
    values = tiny_config().to_dict()
    assert newer_settings(values) == []
    del values["optim"]["accumulate_batches"]
    assert newer_settings(values) == [
        "config: settings that are newer than the run: optim.accumulate_batches=1"
    ]
    values["optim"]["gone"] = 1
    with pytest.raises(ConfigError, match="configuration does not fit the code as it is now: unknown key"):
        newer_settings(values)


def test_code_that_is_not_recorded_is_refused_unless_here() -> None:
    dirty = {"commit": "b" * 40, "is_dirty": True, "untracked": []}
    for environment, fault in (
        ({"checkout": None}, "the run's code was in no git checkout"),
        (
            {"checkout": dirty, "code": "0"},
            "uncommitted changes of commit bbbbbbbbbbbb that were not recorded",
        ),
    ):
        recorded = RecordedCode(environment, "")
        with pytest.raises(RerunError, match=fault), find_code(recorded, here=False):
            pass
        with find_code(recorded, here=True) as code:
            assert code.differences[0].startswith("code: ")
    with find_code(RecordedCode({"code": source_digest(), "checkout": None}, ""), here=False) as code:
        assert code.differences == ()


def test_a_model_that_the_run_built_on_and_that_is_another_now_is_said() -> None:
    was = replace(RUN, params={"init.digest": "a" * 64, "teacher.digest": "b" * 64})
    assert reruns.other_models(was, was) == []
    now = replace(was, params=was.params | {"init.digest": "c" * 64})
    assert reruns.other_models(was, now) == [f"init_from: weights {'a' * 12} then, {'c' * 12} now"]


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        (
            {"kind": "sweep", "sweep": "s"},
            r"one is a sweep: name one of its trials \(harness compare --sweep s\)",
        ),
        ({"status": "RUNNING"}, r"has not ended"),
    ],
)
def test_what_is_no_ended_training_is_refused(part: dict[str, Any], fault: str) -> None:
    with pytest.raises(RerunError, match=fault):
        reruns._check_repeatable(replace(RUN, **part))


@pytest.mark.slow
@pytest.mark.usefixtures("made_store")
def test_a_rerun_is_equal_to_the_last_bit_and_other_images_or_threads_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = TrackingConfig(dir=str(tmp_path / "mlruns"))
    assert (
        main(["train", *SMALL, "tracking.run_name=first", "model.drop_rate=0.1", "evaluate_test=true"]) == 0
    )
    before = get_run(tracking, "first")
    capsys.readouterr()

    assert main(["rerun", "first", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["is_equal"], found["differing"], found["differences"]) == (True, [], [])
    assert found["num_values"] > 40
    again = get_run(tracking, found["run_id"])
    assert again.tags[names.RERUN_OF] == before.run_id
    assert again.metrics["val/loss"] == before.metrics["val/loss"]
    assert not any(name.startswith("test/") for name in again.metrics)
    assert get_run(tracking, "first") == before  # untouched

    assert main(["rerun", "first", "trainer.precision=bf16"]) == 3
    out = capsys.readouterr().out
    assert "differs from then: trainer.precision: fp32 then, bf16 now (as asked)" in out
    assert re.search(r"\d+ of \d+ metrics differ:\n", out)

    assert main(["train", "--resume", again.run_id]) == 2
    assert f"`harness rerun {before.run_id}` begins anew" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reruns, "get_run", lambda *_: replace(before, data_digest="0" * 36))
        with pytest.raises(HarnessError, match=r"digest 000000000000; data\.kind=digits in .* now gives"):
            reruns.rerun(tracking, "first")
