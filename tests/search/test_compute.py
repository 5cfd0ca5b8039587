"""`sweep.compute_per_trial`: every trial takes equally many operations, and what cannot is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config.compose import compose_run, compose_sweep
from harness.config.schema import RunConfig
from harness.data import load_splits
from harness.errors import ConfigError
from harness.search.coordinator.compute import (
    SHARE_OF_TIME,
    Rate,
    affordable_pflop,
    describe_compute,
    measured_rate,
)
from harness.search.coordinator.slots import Measurement, Slots
from harness.search.report.compute import is_unequal, unequal_compute
from harness.search.report.leaderboard import leaderboard_csv, leaderboard_table
from harness.search.report.verdict import judge
from harness.search.study import keys
from harness.search.study.trials import TrialRow
from harness.search.suggest.compute import trial_length, with_compute
from harness.search.sweep import describe_sweep
from harness.training.flops import count_forward_flops, count_image_flops
from harness.training.image_views import views_to_cache
from tests.search.conftest import SmallSweep

NUM_TRAIN = 1294  # of the digits
BASE = ["data=digits", "augment=none"]
MOBILE = ["model=efficientnet_lite0", "model.image_size=32"]
ARMS = {
    "full": ["finetune=full"],
    "partial": ["finetune=partial", "finetune.trainable_groups=2"],
    "linear_probe": ["finetune=linear_probe"],
    "uncached": ["finetune=linear_probe", "finetune.cache_features=false"],
}


def config_of(*overrides: str) -> RunConfig:
    return compose_run([*BASE, *overrides])


def step_of(config: RunConfig) -> float:
    """Return the operations for one image of a run that trains everything."""
    return count_image_flops(config, 10, None).step


def pflop_of(config: RunConfig) -> float:
    """Return the operations of a whole run, from the images that it trains on."""
    assert config.data.samples_per_epoch is not None
    flops = count_image_flops(config, 10, views_to_cache(config))
    num_images = config.data.samples_per_epoch * config.trainer.max_epochs
    return flops.total(num_images, len(load_splits(config.data).train)) / 1e15


# ── the length of a trial ─────────────────────────────────────────────────────────────────────────


def test_a_trial_is_as_long_as_its_compute() -> None:
    config = config_of("model=lenet", "trainer.max_epochs=4")
    length = trial_length(config, 10_000 * step_of(config) / 1e15, max_passes=50)

    assert (length.samples_per_epoch, length.num_images) == (2500, 10_000)
    assert length.passes == pytest.approx(10_000 / NUM_TRAIN)
    assert length.share == pytest.approx(1.0)


def test_every_arm_takes_equally_many_operations() -> None:
    arms = {arm: config_of(*MOBILE, *how, "trainer.max_epochs=3") for arm, how in ARMS.items()}
    same = {arm: with_compute(config, 0.0002, max_passes=1e6) for arm, config in arms.items()}

    for arm, config in same.items():
        assert pflop_of(config) == pytest.approx(0.0002, rel=0.005), arm
        unchanged = {"data": arms[arm].data}
        assert config.model_copy(update=unchanged) == arms[arm], "nothing else changes"
    samples = {arm: config.data.samples_per_epoch or 0 for arm, config in same.items()}
    assert samples["full"] < samples["partial"] < samples["uncached"] < samples["linear_probe"]


def test_a_cheap_arm_ends_at_the_passes_and_tells_its_share() -> None:
    config = config_of(*MOBILE, *ARMS["linear_probe"], "trainer.max_epochs=2")
    length = trial_length(config, 0.0002, max_passes=3)

    assert length.samples_per_epoch == 3 * NUM_TRAIN // 2
    assert length.share == pytest.approx(
        pflop_of(with_compute(config, 0.0002, max_passes=3)) / 0.0002, rel=1e-9
    )
    assert length.share < 0.2


@pytest.mark.parametrize(
    ("overrides", "pflop", "passes", "message"),
    [
        ((), 1e-9, 50, r"sweep\.compute_per_trial=1e-09 PFLOP is less than one batch of 128 images in each"),
        (("data.batch_size=1000",), 1.0, 0.5, r"0\.5 passes .*max_passes\) is less than one batch of 1000"),
        (("data.samples_per_epoch=500",), 1.0, 50, r"leave out data\.samples_per_epoch=500"),
    ],
)
def test_what_has_no_length_is_one_clear_line(
    overrides: tuple[str, ...], pflop: float, passes: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trial_length(config_of("model=lenet", *overrides), pflop, passes)


# ── how much a trial may take ─────────────────────────────────────────────────────────────────────


def test_auto_divides_the_minutes_among_rounds_of_trials() -> None:
    plan = compose_sweep(
        [*BASE, "model=lenet", "finetune=full", "sweep.num_trials=5", "sweep.max_minutes=10"]
    )
    rate, slots = Rate(images_per_second=1000, step=1e9, forward=4e8), Slots(2, 1, 0)
    num_val = len(load_splits(plan.base.data).val)

    def of_rounds(rounds: int) -> float:
        training = SHARE_OF_TIME * 600 / rounds * 1000 * 1e9
        return (training - 2 * num_val * 4e8) / 1e15

    assert affordable_pflop(plan, rate, slots, 0) == pytest.approx(of_rounds(3), rel=0.005)
    assert affordable_pflop(plan, rate, slots, 3) == pytest.approx(of_rounds(3 + 2), rel=0.005)
    with pytest.raises(ConfigError, match=r"do not even validate 2 times: raise sweep\.max_minutes"):
        affordable_pflop(plan, Rate(0.01, 1e9, 4e8), slots, 0)


def test_the_rate_is_that_of_the_slots_measurement() -> None:
    plan = compose_sweep([*BASE, "model=lenet", "finetune=full"])
    slots = Slots(2, 1, 0, measured=(Measurement(1, 2, 900.0, 1e9), Measurement(2, 1, 1200.0, 1e9)))

    assert measured_rate(plan, slots) == Rate(600.0, step_of(plan.base), count_forward_flops(plan.base, 10))


def test_a_rate_that_is_not_known_is_measured() -> None:
    plan = compose_sweep([*BASE, "model=lenet", "finetune=full", "data.batch_size=32"])

    assert measured_rate(plan, Slots(1, 1, 0)).images_per_second > 0


def test_auto_measures_nothing_elsewhere() -> None:
    plan = compose_sweep([*BASE, "model=lenet", "finetune=full", "sweep.executor.kind=ray"])
    with pytest.raises(ConfigError, match="kind=ray trains elsewhere: give the PFLOP of a trial"):
        measured_rate(plan, Slots(2, 1, 0))


def test_auto_needs_minutes_to_divide() -> None:
    with pytest.raises(ConfigError, match="set max_minutes, or give PFLOP"):
        compose_sweep(["sweep.compute_per_trial=auto", "sweep.max_minutes=null"])


# ── in a sweep ────────────────────────────────────────────────────────────────────────────────────


def test_all_trials_of_a_sweep_get_their_length(small_sweep: SmallSweep) -> None:
    pflop = 2000 * step_of(compose_sweep(small_sweep.overrides(), small_sweep.configs).base) / 1e15
    result = small_sweep.run(f"sweep.compute_per_trial={pflop}")

    assert [row.costs["train_images"] for row in result.rows] == [2000] * 3
    assert small_sweep.study().user_attrs[keys.COMPUTE] == {"pflop": pflop, "asked": pflop}
    assert (
        f"compute: {pflop:.3g} PFLOP each: every trial 2,000 images (1.5 passes)"
        in small_sweep.output.getvalue()
    )
    assert "unequal" not in small_sweep.output.getvalue()


@pytest.mark.slow
def test_auto_is_settled_once_for_all_calls(small_sweep: SmallSweep) -> None:
    small_sweep.run("sweep.compute_per_trial=auto", "sweep.max_minutes=0.5", "sweep.num_trials=1")
    first = small_sweep.study().user_attrs[keys.COMPUTE]
    result = small_sweep.run("sweep.compute_per_trial=auto", "sweep.max_minutes=9", "sweep.num_trials=3")

    assert small_sweep.study().user_attrs[keys.COMPUTE] == first
    assert first["asked"] == "auto"
    assert len({row.costs["train_images"] for row in result.rows}) == 1


def test_a_compute_that_an_arm_cannot_take_ends_the_sweep_before_it_begins(small_sweep: SmallSweep) -> None:
    with pytest.raises(ConfigError, match="less than one batch"):
        small_sweep.run("sweep.compute_per_trial=1e-9")
    assert small_sweep.rows() == []


def test_a_sweep_without_it_has_no_compute(small_sweep: SmallSweep) -> None:
    small_sweep.run("sweep.num_trials=1")

    assert keys.COMPUTE not in small_sweep.study().user_attrs
    assert "compute:" not in small_sweep.output.getvalue()


@pytest.mark.slow
def test_the_lengths_of_the_arms_are_told_before_anything_trains(tmp_path: Path) -> None:
    how = [*BASE, f"tracking.dir={tmp_path}", "model.image_size=32"]
    fixed, auto = (compose_sweep([*how, f"sweep.compute_per_trial={asked}"]) for asked in ("0.0004", "auto"))

    first, *stopped = describe_compute(fixed, 0.0004)
    assert first.startswith("0.0004 PFLOP each: linear_probe 2,588 images (2 passes), partial ")
    assert stopped[0].startswith(
        "linear_probe: stopped at 2 passes over the training images (trainer.max_epochs), "
    )
    assert "full" in first
    assert f"compute:     {first}" in describe_sweep(fixed)
    assert "compute:     auto: from sweep.max_minutes and the speed measured at the start" in describe_sweep(
        auto
    )


# ── in the report ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def row() -> Callable[..., TrialRow]:
    def _row(
        number: int, arm: str, images: float, pflop: float, state: str = "complete", epochs: int = 2
    ) -> TrialRow:
        return TrialRow(
            number=number, trial_id=number, state=state, score=0.5, last_score=0.5,  # type: ignore[arg-type]
            best_epoch=0, epochs_done=epochs, max_epochs=2, params={"finetune": arm, "optim.lr": 0.1},
            seconds=1.0, run_id=None, checkpoint=None, reason=None, deaths=0,
            costs={"train_images": images, "train_pflop": pflop},
        )  # fmt: skip

    return _row


def test_arms_of_fixed_bounds_are_said_to_be_unequal(row: Callable[..., TrialRow]) -> None:
    sweep = compose_sweep([*BASE, "sweep=gpu"]).sweep
    rows = [row(0, "full", 2000, 0.001), row(1, "full", 4000, 0.002), row(2, "linear_probe", 90000, 0.006)]

    assert unequal_compute(rows, sweep, 45_000) == (
        "the arms trained with unequal compute: "
        "full 2,000 to 4,000 images, 0.0015 PFLOP; linear_probe 90,000 images, 0.006 PFLOP a trial",
        0.006,
    )
    titles = [str(column.header) for column in leaderboard_table(rows, sweep, judge(rows, sweep)).columns]
    assert "train\npflop" in titles
    assert "train_pflop,train_images" in leaderboard_csv(rows, sweep, judge(rows, sweep))


def test_equal_arms_need_no_words(row: Callable[..., TrialRow]) -> None:
    sweep = compose_sweep([*BASE, "sweep=gpu"]).sweep
    rows = [
        row(0, "full", 2000, 0.0041),
        row(1, "linear_probe", 90000, 0.0040),
        row(2, "partial", 100, 0.0001, "pruned", epochs=1),
        row(3, "partial", 100, 0.0001, epochs=1),  # it ran out of patience
    ]

    assert not is_unequal(rows)
    assert unequal_compute(rows, sweep, 45_000) is None
    assert "train\npflop" not in [
        str(column.header) for column in leaderboard_table(rows, sweep, judge(rows, sweep)).columns
    ]


def test_an_arm_that_ended_at_its_passes_is_named(row: Callable[..., TrialRow]) -> None:
    sweep = compose_sweep([*BASE, "sweep=gpu", "sweep.compute_per_trial=0.01", "sweep.max_passes=2"]).sweep
    rows = [row(0, "full", 50_000, 0.01), row(1, "linear_probe", 90_000, 0.0057)]

    capped = (
        "linear_probe: stopped at 2 passes over the training images (sweep.max_passes), "
        "57% of the others' compute"
    )
    assert unequal_compute(rows, sweep, 45_000) == (capped, 0.01)
    for number, num_train in ((20_000, 45_000), (90_000, None)):  # where the cap is not known, none is named
        found = unequal_compute([rows[0], row(1, "partial", number, 0.004)], sweep, num_train)
        assert found is not None
        assert found[0].startswith("the arms trained with unequal compute: full 50,000 images")
