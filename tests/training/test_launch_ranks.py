"""Two processes that train together: the run of one process, and one fate whatever happens to either."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config.schema import RunConfig
from harness.errors import ConfigError, DataError
from harness.training.checkpoints.checkpoint import load_checkpoint
from harness.training.devices import launch_ranks
from harness.training.devices.machine import check_devices
from harness.training.result import RunResult
from tests.helpers.recording_tracker import RecordingTracker
from tests.training import together
from tests.training.together import Behaviour, is_running

TOLERANCE = 2e-4  # of losses and weights after a few epochs: sums are taken in another order
TOGETHER = (
    "trainer.devices=2",
    "trainer.precision=fp32",
    "data.batch_size=32",
    "optim=sgd",
    "optim.lr=0.02",
    "trainer.max_epochs=2",
)
TIMELESS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/f1", "val/auc", "lr")

Run = Callable[..., tuple[RunResult, RecordingTracker]]
Config = Callable[..., RunConfig]


@pytest.fixture
def config(tiny_config: Config) -> Config:
    return lambda *overrides: tiny_config(*TOGETHER, *overrides)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.ckpt").state_dict


def assert_same_run(run: Run, config: RunConfig, tmp_path: Path) -> None:
    """Compare with one process: every epoch's metrics, the last weights, what is told of the best epoch."""
    process = together.start(config, tmp_path / "two")
    alone = config.model_copy(update={"trainer": config.trainer.model_copy(update={"devices": 1})})
    one_result, one = run(alone, "one")
    two_result, two = process.result()

    assert sorted(two.epochs) == sorted(one.epochs)
    for epoch, metrics in one.epochs.items():
        for name in (*TIMELESS, *(name for name in metrics if name.endswith("_no_tta"))):
            assert two.epochs[epoch][name] == pytest.approx(metrics[name], abs=TOLERANCE), (epoch, name)
    for name, tensor in weights(tmp_path / "one").items():
        assert torch.allclose(weights(tmp_path / "two")[name], tensor, atol=TOLERANCE), name
    assert two_result.best_epoch == one_result.best_epoch
    assert two.artifacts["val/confusion.json"] == one.artifacts["val/confusion.json"]


def test_two_processes_train_as_one(run: Run, config: Config, tmp_path: Path) -> None:
    """The last batch of an epoch has 11 images, of which the ranks take 5 and 6."""
    clip = "optim.clip_grad_norm=1.0"
    assert_same_run(run, config("data.max_train_samples=75", "augment=strong", clip), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("data.max_train_samples=67", "augment=standard"),  # three images are left: too few to share
        # An image is mixed with one of the other rank's, in the first epoch.
        ("data.max_train_samples=90", "augment=mix", "augment.mix_off_epoch=1", "evaluation.tta=flip"),
        ("data.max_train_samples=90", "optim=adamw", "optim.lr=0.001", "augment.flip=alternating"),
        ("data.max_train_samples=90", "data.samples_per_epoch=70", "augment=standard"),
        ("data.max_train_samples=75", "optim.accumulate_batches=2", "average=ema", "average.decay=0.5"),
        ("data.max_train_samples=75", "optim.sam_rho=0.5", "optim.accumulate_batches=2"),
        ("data.max_train_samples=75", "average=swa", "average.start_epoch=0", "optim.clip_grad_adaptive=0.1"),
    ],
)
def test_two_processes_train_as_one_in_every_way(
    run: Run, config: Config, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    assert_same_run(run, config(*overrides), tmp_path)


@pytest.mark.slow
def test_with_synchronised_batch_norm_too(run: Run, config: Config, tmp_path: Path) -> None:
    """For three small steps: of a difference in the last bit, this network soon makes one of a per cent."""
    network = ("model=timm", "model.name=test_efficientnet", "model.image_size=32")
    few = ("data.max_train_samples=75", "optim.lr=0.001", "trainer.max_epochs=1")
    assert_same_run(run, config(*network, *few, "trainer.sync_batchnorm=true"), tmp_path)


@pytest.mark.slow
def test_two_processes_train_on_cached_features_as_one(run: Run, config: Config, tmp_path: Path) -> None:
    network = ("model=efficientnet_lite0", "model.image_size=32", "finetune=linear_probe", "augment=none")
    assert_same_run(run, config(*network, "data.max_train_samples=75"), tmp_path)


@pytest.mark.slow
def test_each_rank_reads_its_own_files(run: Run, config: Config, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tree" / name / f"{number}.png")
    files = ("data=folder", f"data.dir={tmp_path / 'tree'}", "data.decode_size=32", "data.max_memory_share=0")
    few = ("data.max_train_samples=null", "data.batch_size=8", "data.num_workers=1", "augment=standard")
    assert_same_run(run, config(*files, *few), tmp_path)


@pytest.mark.slow
def test_a_stem_that_stops_early_stops_on_all_ranks(config: Config, tmp_path: Path) -> None:
    speed = ("model=speed_cnn", "model.image_size=9", "optim=muon", "optim.lr=0.05", "optim.stem_epochs=2")
    at = {}
    for epochs in (1, 2, 4):  # one run, in three parts
        settings = config(*speed, "data.max_train_samples=60", f"trainer.max_epochs={epochs}")
        together.start(settings, tmp_path / "run").result()
        at[epochs] = weights(tmp_path / "run")["network.whiten.bias"]
    assert not torch.equal(at[1], at[2])
    assert torch.equal(at[2], at[4])


@pytest.mark.slow
def test_rank_zero_prunes_for_all(config: Config, tmp_path: Path) -> None:
    process = together.start(config("trainer.max_epochs=9"), tmp_path / "run", Behaviour(prune_after=1))
    result, tracker = process.result()
    assert (result.status, tracker.status) == ("pruned", "FINISHED")
    assert sorted(tracker.epochs) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_either_stops_both_and_a_resumed_run_ends_as_an_uninterrupted_one(
    config: Config, tmp_path: Path, rank: int
) -> None:
    """With batch norm that is not synchronised, whose statistics must be of both ranks."""
    network = ("model=timm", "model.name=test_resnet", "model.image_size=32", "augment=standard")
    settings = config(*network, "data.max_train_samples=75")  # three batches an epoch
    whole = together.start(settings, tmp_path / "whole")
    parts = together.start(settings, tmp_path / "parts", Behaviour(act_at=5, act="stop", rank=rank))
    _, uninterrupted = whole.result()
    assert parts.end() == 143
    _, resumed = together.start(settings, tmp_path / "parts").result()

    assert resumed.epochs.keys() == uninterrupted.epochs.keys()
    for epoch, metrics in uninterrupted.epochs.items():
        assert {k: metrics[k] for k in TIMELESS} == {k: resumed.epochs[epoch][k] for k in TIMELESS}
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.slow
def test_sigterm_of_the_launcher_is_a_stop(config: Config, tmp_path: Path) -> None:
    process = together.start(config("trainer.max_epochs=1000"), tmp_path / "run")
    pids = process.rank_pids()
    process.process.terminate()
    assert process.end() == 143
    assert not any(is_running(pid) for pid in pids)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_other_and_the_run_can_go_on(
    config: Config, tmp_path: Path, rank: int
) -> None:
    settings = config("data.max_train_samples=75")
    process = together.start(settings, tmp_path / "run", Behaviour(act_at=5, act="die", rank=rank))
    pids = process.rank_pids()
    assert process.end() not in (0, 143)
    assert not any(is_running(pid) for pid in pids)
    result, tracker = together.start(settings, tmp_path / "run").result()
    assert (result.status, sorted(tracker.epochs)) == ("finished", [0, 1])


@pytest.mark.slow
def test_what_one_rank_raises_is_what_the_run_ends_with(config: Config, tmp_path: Path) -> None:
    process = together.start(config(), tmp_path / "run", Behaviour(act_at=2, act="fail", rank=1))
    assert process.end() == 1
    lines = (tmp_path / "run" / "log.txt").read_text().strip().splitlines()
    assert lines[-1] == "ZeroDivisionError: a bug in rank 1"


@pytest.mark.slow
def test_ranks_do_not_outlive_a_killed_launcher(config: Config, tmp_path: Path) -> None:
    process = together.start(config(), tmp_path / "run", Behaviour(act_at=2, act="wait", rank=0))
    pids = process.rank_pids()
    process.process.kill()
    process.process.join()
    until = time.monotonic() + 300
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_lost_coordinator_stops_the_ranks(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    context = multiprocessing.get_context("forkserver")
    coordinator = context.Process(
        target=together.start_and_leave, args=(config("trainer.max_epochs=999"), folder)
    )
    coordinator.start()
    coordinator.join()
    pids = [int((folder / f"rank-{rank}.pid").read_text()) for rank in range(2)]
    until = time.monotonic() + 300
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


class Unpicklable(Exception):  # noqa: N818
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_exception_reaches_the_launcher_with_its_causes(tmp_path: Path) -> None:
    try:
        try:
            raise Unpicklable(1, 2)
        except Unpicklable as cause:
            raise DataError("no file") from cause
    except DataError as error:
        launch_ranks._keep(error, tmp_path / "1.error")
    found = launch_ranks._first_error(tmp_path)
    assert isinstance(found, DataError)
    assert str(found) == "no file"
    assert isinstance(found.__cause__, RuntimeError)
    assert str(found.__cause__) == f"{Unpicklable.__module__}.Unpicklable: 1 and 2"
    assert launch_ranks._first_error(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(("device", "gpus", "wanted"), [("cuda", 1, 2), ("mps", 0, 2)])
def test_devices_that_are_not_there_are_refused(device: str, gpus: int, wanted: int) -> None:
    with pytest.raises(ConfigError, match="together"):
        check_devices(wanted, device, gpus)
    check_devices(1, device, gpus)
    check_devices(wanted, "cpu", 0)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match=r"data.batch_size=32 cannot be shared evenly by 3 devices"):
        tiny_config("data.batch_size=32", "trainer.devices=3")


def test_no_signal_is_blocked_where_nobody_trains_together() -> None:
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
