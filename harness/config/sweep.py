"""Every key of the section `sweep`: space, objective, budget, and where trials run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from harness.config.executor import ExecutorConfig, LocalExecutorConfig
from harness.config.monitor import Judged, MonitorConfig
from harness.config.objectives import Constraint, SecondObjective, parse_constraint
from harness.config.sampling import PrunerConfig, ReplicateConfig, SamplerConfig
from harness.config.schema import PositiveInt
from harness.config.space import (
    Choice,
    FloatRange,
    IntRange,
    SearchSpace,
    check_conditions,
    check_point,
    grid_points,
)

Seconds = Annotated[float, Field(gt=0)]
Minutes = Annotated[float, Field(gt=0)]
Gigabytes = Annotated[float, Field(ge=0)]


class SweepConfig(SearchSpace, Judged):
    """A space, an objective and a budget; the rest of the sweep's file is the run it starts from.

    The objective (`metric`, `direction`) is `trainer.monitor` of every trial.
    """

    name: str | None = None  # None = <sweep file>-<data set>-<digest of the sweep's identity>
    second_objective: SecondObjective | None = None  # a cost beside the metric; the result is a Pareto front
    constraints: list[str] = Field(default_factory=list)  # on costs, such as "params_millions <= 5"
    num_trials: PositiveInt = 12  # of the sweep in all, over all commands, however they end
    # 10^15 operations (PFLOP) of training, of each trial whatever its arm; sets data.samples_per_epoch. auto:
    # as many as max_minutes allows at the measured speed. None: each trial trains as long as its run says.
    compute_per_trial: Annotated[float, Field(gt=0)] | Literal["auto"] | None = None
    # Over the training images: there, with compute_per_trial, a trial ends that could go on for longer. None:
    # as many as trainer.max_epochs, so that no epoch is longer than one pass.
    max_passes: Annotated[float, Field(gt=0)] | None = None
    max_minutes: Minutes | None = None  # of one command; then running trials stop, to be resumed
    target: float | None = None  # of the metric: no new trials once a complete one has reached it
    patience_trials: PositiveInt | None = None  # no new trials once so many have ended without a better one
    slots: PositiveInt | Literal["auto"] = "auto"  # trials at a time; auto: by the GPUs; on a CPU, measured
    threads_per_trial: PositiveInt | Literal["auto"] = "auto"  # auto: cores ÷ slots, or measured
    devices_per_trial: PositiveInt = 1  # GPUs (or, on a CPU, processes) that train one trial together
    checkpoint_gb: Gigabytes | None = None  # 10^9 bytes; beyond it the worst trials' checkpoints are removed
    keep_checkpoints: PositiveInt = 3  # of the best trials, whatever checkpoint_gb is
    min_free_gb: Gigabytes = 1.0  # with less on the disk of runs nothing starts, and running trials stop
    # Read the test split with the best trial's checkpoint when the sweep has ended; each reading is recorded.
    evaluate_test: bool = True
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    replicate: ReplicateConfig = ReplicateConfig()
    executor: ExecutorConfig = LocalExecutorConfig()
    storage: str | None = None  # postgresql:// or mysql://; None = SQLite under tracking.dir, one machine
    max_retries: Annotated[int, Field(ge=0)] = 2  # of a trial whose process died
    max_consecutive_failures: PositiveInt = 3  # then the sweep stops and says why
    trial_timeout_minutes: Minutes | None = None  # of one attempt at a trial; then it has failed
    grace_seconds: Seconds = 60.0  # between asking a trial to stop and ending its process
    allow_changed_code: bool = False  # go on although the program is no longer what the sweep began with
    lease_seconds: Seconds = 120.0  # a trial without a heartbeat for longer may be taken over

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        check_conditions(self.space, self.rules)
        return self

    @model_validator(mode="after")
    def _points_are_in_the_space(self) -> Self:
        for index, point in enumerate(self.enqueue, start=1):
            try:
                check_point(self.space, point)
            except ValueError as error:
                raise ValueError(f"point {index} of enqueue: {error}") from None
        if len(self.enqueue) > self.num_trials:
            raise ValueError(
                f"enqueue has {len(self.enqueue)} points: num_trials={self.num_trials} is too few"
            )
        return self

    @model_validator(mode="after")
    def _auto_has_a_budget(self) -> Self:
        if self.compute_per_trial == "auto" and self.max_minutes is None:
            raise ValueError(
                "compute_per_trial=auto divides max_minutes among the trials: set max_minutes, or give PFLOP"
            )
        return self

    @model_validator(mode="after")
    def _sampler_suits(self) -> Self:
        if self.sampler.kind == "grid":
            most = len(grid_points(self.space)) + len(self.enqueue)
            if self.num_trials > most:
                raise ValueError(f"the grid ends after {most} trials: set num_trials={most} or less")
        if self.sampler.kind == "cmaes":
            if not self.common_ranges():
                raise ValueError("sampler.kind=cmaes needs a range (type: float or int) that every trial has")
            if self.constraints or self.second_objective:
                raise ValueError(
                    "sampler.kind=cmaes knows neither constraints nor a second objective: use tpe, gp, nsgaii"
                )
        return self

    @model_validator(mode="after")
    def _replicates_have_a_ranking(self) -> Self:
        if self.replicate.seeds and self.second_objective:
            raise ValueError(
                "sweep.replicate retrains the best trials, but with a second objective no trial is the best: "
                "set sweep.replicate.seeds=0, or leave out second_objective"
            )
        if self.replicate.seeds and "seed" in self.space:
            raise ValueError(
                "sweep.replicate draws seeds of its own: take `seed` out of the space, or set "
                "sweep.replicate.seeds=0"
            )
        return self

    @model_validator(mode="after")
    def _constraints_can_be_read(self) -> Self:
        self.parsed_constraints()
        return self

    def parsed_constraints(self) -> list[Constraint]:
        """Return the constraints, parsed."""
        return [parse_constraint(text) for text in self.constraints]

    @property
    def monitor(self) -> MonitorConfig:
        """The `trainer.monitor` of each trial: the metric that decides within a trial and among trials."""
        return MonitorConfig(metric=self.metric)

    def common_ranges(self) -> dict[str, FloatRange | IntRange]:
        """Return the ranges that every trial has a value of."""
        return {p: d for p, d in self.space.items() if not isinstance(d, Choice) and not d.when}
