"""A run goes on from the newest checkpoint that is whole, and ends as if nothing had happened."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.errors import CheckpointError, DiskFullError, DivergedError
from harness.training.checkpoints.checkpoint import SECTION, ModelFacts, load_checkpoint
from harness.training.checkpoints.checkpoint_io import AtomicCheckpointIO
from harness.training.checkpoints.resume_point import find_resume_point
from harness.training.result import EpochReport, RunResult
from harness.training.train import train
from tests.helpers.recording_tracker import RecordingTracker
from tests.training.conftest import TINY, flip_bit, limited_file_size, stop_after

Run = Callable[..., tuple]
Config = Callable[..., object]

FACTS = ModelFacts(RunConfig().to_dict(), ("a", "b"), (0, 0, 0), (1, 1, 1), "d", "9")


def live(
    folder: Path,
    scores: list[float],
    since: int = 0,
    *,
    dies_before_last: bool = False,
    facts: ModelFacts = FACTS,
) -> None:
    """Leave the files of a run with these accuracies, without training."""
    for epoch in range(since, len(scores)):
        history = [{"val/accuracy": score} for score in scores[: epoch + 1]]
        content = {
            "state_dict": {},
            SECTION: {**facts.to_dict(), "epoch": epoch, "score": scores[epoch]},
            "callbacks": {"EpochRecorder": {"history": history}},
        }
        if scores[epoch] > max(scores[:epoch], default=0):
            AtomicCheckpointIO().save_checkpoint(content, folder / "best.ckpt")
        if not (dies_before_last and epoch == len(scores) - 1):
            AtomicCheckpointIO().save_checkpoint(content, folder / "last.ckpt")


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def resumed_epochs(folder: Path) -> tuple[int, int] | None:
    """Return the epochs of the last and the best checkpoint that a run would go on from."""
    last = find_resume_point(folder, FACTS, "best")
    if last is None:
        return None
    assert last == folder / "last.ckpt"
    return load_checkpoint(last).epoch, load_checkpoint(folder / "best.ckpt").epoch


def damage(path: Path) -> None:
    flip_bit(path, path.stat().st_size // 2)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_nothing_is_resumed_in_an_empty_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert resumed_epochs(tmp_path / "none") is None
    assert caplog.messages == []


def test_the_newest_is_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live(tmp_path, [0.5, 0.7, 0.6])
    assert resumed_epochs(tmp_path) == (2, 1)
    assert caplog.messages == []


def test_a_damaged_last_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live(tmp_path, [0.5, 0.7, 0.6])
    damage(tmp_path / "last.ckpt")
    assert resumed_epochs(tmp_path) == (1, 1)
    [message] = caplog.messages
    assert "last.ckpt is damaged and was set aside as last.ckpt.damaged: going on after epoch 2" in message
    assert "last.ckpt.damaged" in names(tmp_path)


def test_a_kill_between_the_two_renames_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live(tmp_path, [0.5, 0.7, 0.6])
    (tmp_path / "last.ckpt").rename(tmp_path / "last.previous.ckpt")
    assert resumed_epochs(tmp_path) == (2, 1)
    assert caplog.messages == []


def die_before_call(number: int, folder: Path, scores: list[float]) -> None:
    """Write the last epoch's files, but be killed before one of the calls that change what is on disk."""
    calls = iter(range(1, 100))

    def or_die(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object) -> object:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args)

        return wrapped

    os.fsync = or_die(os.fsync)  # type: ignore[assignment]
    Path.replace = or_die(Path.replace)  # type: ignore[method-assign, assignment]
    live(folder, scores, since=len(scores) - 1)


def test_a_kill_at_any_step_of_writing_costs_one_epoch_at_most(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores, calls_an_epoch = [0.5, 0.6, 0.7], 8  # sync, keep the old one, rename, sync; for best and for last
    live(tmp_path / "before", scores[:2])
    fork = multiprocessing.get_context("fork")
    for number in range(1, calls_an_epoch + 2):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", folder)
        writer = fork.Process(target=die_before_call, args=(number, folder, scores))
        writer.start()
        writer.join()
        assert writer.exitcode == (-signal.SIGKILL if number <= calls_an_epoch else 0)
        assert resumed_epochs(folder) == ((2, 2) if number >= calls_an_epoch else (1, 1)), number
    assert warnings_in(caplog) == [], "no file was damaged"


def test_two_damaged_ones_mean_the_beginning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live(tmp_path, [0.5, 0.7, 0.6])
    for name in ("last.ckpt", "last.previous.ckpt"):
        damage(tmp_path / name)
    assert resumed_epochs(tmp_path) is None
    [message] = caplog.messages
    assert message.endswith("last.previous.ckpt.damaged: starting from the beginning")
    assert {"last.ckpt.damaged", "last.previous.ckpt.damaged"} <= names(tmp_path)


def test_a_damaged_best_of_the_last_epoch_costs_that_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live(tmp_path, [0.5, 0.7, 0.8])
    damage(tmp_path / "best.ckpt")
    assert resumed_epochs(tmp_path) == (1, 1), "what best.ckpt replaced is the best of the epochs before"
    assert caplog.messages[0].endswith("set aside as best.ckpt.damaged: going on after epoch 2")


def test_a_damaged_best_of_an_earlier_epoch_means_the_beginning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live(tmp_path, [0.5, 0.8, 0.6, 0.7])
    damage(tmp_path / "best.ckpt")
    assert resumed_epochs(tmp_path) is None
    [message] = caplog.messages
    assert "best.ckpt is damaged" in message
    assert message.endswith("starting from the beginning")
    live(tmp_path, [0.5])  # starts anew, dies after an epoch
    assert resumed_epochs(tmp_path) == (0, 0)


def test_a_best_that_is_ahead_of_the_last_is_put_back(tmp_path: Path) -> None:
    """Repeated elsewhere, that epoch may be worse: its file must not stay in the name of another."""
    live(tmp_path, [0.5, 0.6, 0.9], dies_before_last=True)
    assert load_checkpoint(tmp_path / "best.ckpt").epoch == 2
    assert resumed_epochs(tmp_path) == (1, 1)


def test_another_run_of_the_same_epoch_is_not_its_best(tmp_path: Path) -> None:
    live(tmp_path, [0.5, 0.6])
    other = tmp_path / "other"
    live(other, [0.5, 0.7])
    (other / "best.ckpt").replace(tmp_path / "best.ckpt")
    assert resumed_epochs(tmp_path) == (0, 0)


def test_another_question_is_refused_not_set_aside(tmp_path: Path) -> None:
    live(tmp_path, [0.5, 0.7])
    damage(tmp_path / "last.ckpt")
    other = ModelFacts(**{**vars(FACTS), "data_digest": "8"})
    with pytest.raises(CheckpointError, match=r"last\.previous\.ckpt was trained on other data"):
        find_resume_point(tmp_path, other, "best")
    taught = ModelFacts(**{**vars(FACTS), "teacher": "7"})
    with pytest.raises(CheckpointError, match=r"from a teacher with weights None, and .* has 7 now"):
        find_resume_point(tmp_path, taught, "best")
    assert "last.previous.ckpt" in names(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["data.batch_size=25"], r"was trained with data\.batch_size=50"),
        (["data.samples_per_epoch=60"], r"was trained with data\.samples_per_epoch=null"),
        (["trainer.max_epochs=8"], r"max_epochs=4, over which its cosine schedule is laid out"),
        (["evaluation.tta=flip"], "another 'evaluation' section"),
        (["trainer.max_epochs=8", "optim.schedule.kind=constant"], None),
        (["trainer.max_epochs=8", "optim.schedule.kind=step"], None),
        (["trainer.max_epochs=2", "optim.schedule.kind=constant"], "3 epochs behind it"),
    ],
)
def test_a_run_goes_on_with_the_steps_and_rates_that_it_had(
    tmp_path: Path, overrides: list[str], problem: str | None
) -> None:
    schedule = [override for override in overrides if override.startswith("optim")]
    before, now = (
        compose_run(["data=digits", "model=lenet", *settings, *schedule]).to_dict()
        for settings in (["data.batch_size=50", "trainer.max_epochs=4"], ["data.batch_size=50", *overrides])
    )
    if "max_epochs" not in " ".join(overrides):
        now["trainer"]["max_epochs"] = 4
    live(tmp_path, [0.5, 0.7, 0.6], facts=replace(FACTS, config=before))
    facts = replace(FACTS, config=now)

    if problem is None:
        assert find_resume_point(tmp_path, facts, "best") == tmp_path / "last.ckpt"
    else:
        with pytest.raises(CheckpointError, match=problem):
            find_resume_point(tmp_path, facts, "best")


def test_a_checkpoint_that_is_older_than_a_setting_has_its_default(tmp_path: Path) -> None:
    config = compose_run(["data=digits", "model=timm", "model.name=test_resnet"]).to_dict()
    older = {**config, "model": {key: value for key, value in config["model"].items() if key != "stem"}}
    live(tmp_path, [0.5, 0.7], facts=replace(FACTS, config=older))

    assert find_resume_point(tmp_path, replace(FACTS, config=config), "best") == tmp_path / "last.ckpt"
    small = {**config, "model": {**config["model"], "stem": "small_image"}}
    with pytest.raises(CheckpointError, match="another 'model' section"):
        find_resume_point(tmp_path, replace(FACTS, config=small), "best")


def test_a_constant_rate_trains_longer_as_if_it_had_been_meant_to(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    constant = ("optim.schedule.kind=constant", "augment=none")
    run(tiny_config("trainer.max_epochs=2", *constant), folder="whole")
    run(tiny_config("trainer.max_epochs=1", *constant))
    result, _ = run(tiny_config("trainer.max_epochs=2", *constant))

    assert_ends_as_whole(result, tmp_path)


def test_epochs_that_draw_on_through_the_images_go_on_where_they_stopped(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    """The third of four epochs of 200 images begins in the second pass over 300; the last mixes nothing."""
    bounded = (
        "data.samples_per_epoch=200",
        "trainer.max_epochs=4",
        "augment=mix",
        "augment.flip=alternating",
        "augment.mix_off_epoch=3",
    )
    whole, tracker = run(tiny_config(*bounded), folder="whole")
    run(tiny_config(*bounded), **stop_after(2))
    result, _ = run(tiny_config(*bounded))

    assert_ends_as_whole(result, tmp_path)
    assert whole.score == result.score
    assert tracker.epochs[3]["lr"] < 0.05 * tracker.epochs[0]["lr"]  # the cosine spans these steps


# ── with training ─────────────────────────────────────────────────────────────────────────────────

LEARNS = ("trainer.max_epochs=4", "augment=strong", "optim=sgd", "optim.lr=0.02")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the same: `whole`, and `run`, stopped in its fourth epoch."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", str(folder / "cache"))
        for name, how in (("whole", {}), ("run", stop_after(3))):
            train(
                compose_run([*TINY, *LEARNS]),
                tracker=RecordingTracker(),
                checkpoint_dir=folder / name,
                **how,
            )
    assert load_checkpoint(folder / "run" / "last.ckpt").epoch == 2
    return folder


@pytest.fixture
def go_on(trained: Path, run: Run, tiny_config: Config, tmp_path: Path) -> Callable[..., RunResult]:
    """Give the test a copy of both runs, and return how to go on with `run`."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return lambda **how: run(tiny_config(*LEARNS), **how)[0]


def assert_ends_as_whole(result: RunResult, tmp_path: Path) -> None:
    assert result.status == "finished"
    for name in ("last.ckpt", "best.ckpt"):
        whole, parts = (load_checkpoint(tmp_path / folder / name) for folder in ("whole", "run"))
        assert parts.score == whole.score
        differing = [key for key, x in whole.state_dict.items() if not torch.equal(x, parts.state_dict[key])]
        assert (name, differing) == (name, [])


@pytest.mark.parametrize("names", [("last",), ("last", "last.previous"), ("best",)])
def test_a_resumed_run_ends_as_a_whole_one_whatever_is_damaged(
    go_on: Callable[..., RunResult], tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        damage(tmp_path / "run" / f"{name}.ckpt")
    assert_ends_as_whole(go_on(), tmp_path)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"last.ckpt", "best.ckpt", *(f"{name}.ckpt.damaged" for name in names)}


def test_checkpoints_of_an_older_version_are_resumed(go_on: Callable[..., RunResult], tmp_path: Path) -> None:
    for path in (tmp_path / "run").iterdir():
        content = torch.load(path, weights_only=True)
        content["callbacks"]["ModelCheckpoint{'monitor': None}"] = {"best_model_path": "/elsewhere"}
        torch.save(content, path)
    assert_ends_as_whole(go_on(), tmp_path)


def test_an_epoch_whose_loss_is_nan_leaves_no_checkpoint(
    run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config("trainer.max_epochs=3", "optim=sgd", "optim.lr=1e30")
    for _ in range(2):  # the second time, as after a kill, before anybody was told
        with pytest.raises(DivergedError, match="epoch 1"):
            run(config)
    assert list((tmp_path / "run").glob("*")) == []


def test_a_run_ends_on_a_full_disk_and_goes_on_when_there_is_room(
    go_on: Callable[..., RunResult], small_disk: Path, tmp_path: Path
) -> None:
    shutil.move(tmp_path / "run", small_disk / "run")
    (tmp_path / "run").symlink_to(small_disk / "run")
    filler = small_disk / "filler"

    def fill(report: EpochReport) -> str:
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
        return "continue"

    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    with pytest.raises(DiskFullError, match="make room there"):
        go_on(on_epoch=fill)
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before
    with pytest.raises(DiskFullError, match="may need"):
        go_on()
    filler.unlink()
    assert_ends_as_whole(go_on(), tmp_path)


def test_a_run_ends_at_a_limit_on_file_sizes_and_goes_on_without(
    go_on: Callable[..., RunResult], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    with limited_file_size(100_000), pytest.raises(DiskFullError, match="ulimit -f"):
        go_on()
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before
    assert_ends_as_whole(go_on(), tmp_path)
    assert warnings_in(caplog) == [], "no file was damaged"
