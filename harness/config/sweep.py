"""What a sweep is: a space, an objective, a budget, and where its trials run."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from harness.config.executor import ExecutorConfig, LocalExecutorConfig
from harness.config.sampling import PrunerConfig, SamplerConfig
from harness.config.schema import Frozen, PositiveInt
from harness.config.space import Choice, Dimension, Rule, Scalar

Seconds = Annotated[float, Field(gt=0)]
Minutes = Annotated[float, Field(gt=0)]
Gigabytes = Annotated[float, Field(ge=0)]


class SweepConfig(Frozen):
    """A space, an objective and a budget; the rest of the sweep's file is the run it starts from."""

    name: str | None = None  # None = <sweep file>-<data set>-<digest of the question>
    metric: Literal["val/accuracy", "val/loss"] = "val/accuracy"
    direction: Literal["maximize", "minimize"] = "maximize"
    num_trials: PositiveInt = 12  # that ended: complete, pruned or failed, over all calls
    max_minutes: Minutes | None = None  # of one call; then running trials stop early
    slots: PositiveInt | Literal["auto"] = "auto"  # trials at a time; on a CPU measured, once for a model
    threads_per_trial: PositiveInt | Literal["auto"] = "auto"  # on a CPU: cores ÷ slots
    devices_per_trial: PositiveInt = 1  # GPUs (or, on a CPU, processes) that train one trial together
    checkpoint_gb: Gigabytes | None = None  # 10^9 bytes; beyond it the worst trials' checkpoints are removed
    keep_checkpoints: PositiveInt = 3  # of the best trials, whatever checkpoint_gb is
    min_free_gb: Gigabytes = 1.0  # with less on the disk of runs nothing starts, and running trials stop
    evaluate_test: bool = True  # the best trial's checkpoint, once, at the end
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    rules: list[Rule] = Field(default_factory=list)
    enqueue: list[dict[str, Scalar]] = Field(default_factory=list)  # starting points: path -> value

    executor: ExecutorConfig = LocalExecutorConfig()
    storage: str | None = None  # postgresql:// or mysql://; None = SQLite under tracking.dir, one machine
    max_retries: Annotated[int, Field(ge=0)] = 2  # of a trial whose process died
    max_consecutive_failures: PositiveInt = 3  # then the sweep stops and says why
    trial_timeout_minutes: Minutes | None = None  # of one attempt at a trial; then it has failed
    grace_seconds: Seconds = 60.0  # between asking a trial to stop and ending its process
    lease_seconds: Seconds = 120.0  # a trial of which nothing is heard for so long may be taken over

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.metric == "val/loss") != (self.direction == "minimize"):
            raise ValueError(f"direction={self.direction} does not suit metric={self.metric}")
        seen: list[str] = []
        for path, dimension in self.space.items():
            if late := [name for name in dimension.when if name not in seen]:
                raise ValueError(
                    f"space {path!r} depends on {late[0]!r}, which must stand above it in the space"
                )
            seen.append(path)
        for rule in self.rules:
            if unknown := [name for name in rule.when if name not in self.space]:
                raise ValueError(f"a rule depends on {unknown[0]!r}, which the space does not have")
        return self

    def num_grid_points(self) -> float:
        """Return how many different trials the space holds (inf if it has a continuous dimension)."""
        sizes = [len(d.values) if isinstance(d, Choice) else math.inf for d in self.space.values()]
        return math.prod(sizes)
