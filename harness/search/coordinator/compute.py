"""Decides how many operations each trial of a sweep may take (`sweep.compute_per_trial`), and says so.

`sweep.py` calls `settle_compute` before the first trial. The number is stored with the study: a resumed or
extended sweep and workers on other machines keep it. `suggest/compute.py` turns it into a trial's length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from harness.analysis.layout import span
from harness.config.compose import SweepPlan
from harness.data import load_splits
from harness.errors import ConfigError
from harness.search.coordinator.measure_slots import Candidate, case_of, heaviest_run, measure_together
from harness.search.coordinator.slots import Slots
from harness.search.study import keys
from harness.search.suggest.compute import TrialLength, describe_cap, trial_length
from harness.search.suggest.space import corner_runs

# Of the time that there is: the rest goes into the start of processes, cached activations, checkpoints, what
# is measured at a run's end, and the test split.
SHARE_OF_TIME = 0.75
STOPPED = 0.95  # an arm that takes less than this share of a trial's compute is said to stop early


@dataclass(frozen=True)
class Rate:
    """How fast one trial trains while all slots are in use.

    Args:
        images_per_second: Of the most expensive run.
        step: Operations of a training step for one image.
        forward: Operations of validating one image.
    """

    images_per_second: float
    step: float
    forward: float


def settle_compute(plan: SweepPlan, study: optuna.Study, slots: Slots, extra_trials: int = 0) -> float | None:
    """Return the operations of each trial, in 10^15, and store them with the study; None: not equalised.

    Args:
        slots: How many trials train at a time; their measured speed, where it was measured.
        extra_trials: That are trained after the `sweep.num_trials` of the search, such as replicates.

    Raises:
        ConfigError: `auto` where nothing can be measured, or `sweep.max_minutes` is too short.
    """
    asked = plan.sweep.compute_per_trial
    if asked is None:
        return None
    known: Mapping[str, Any] = study.user_attrs.get(keys.COMPUTE, {})
    if asked == "auto" and "pflop" in known:
        return float(known["pflop"])
    pflop = (
        affordable_pflop(plan, measured_rate(plan, slots), slots, extra_trials) if asked == "auto" else asked
    )
    study.set_user_attr(keys.COMPUTE, {"pflop": pflop, "asked": asked})
    return pflop


def known_compute(study: optuna.Study) -> float | None:
    """Return the operations of each trial, in 10^15, that are stored with the study; None: not equalised."""
    pflop = study.user_attrs.get(keys.COMPUTE, {}).get("pflop")
    return None if pflop is None else float(pflop)


def affordable_pflop(plan: SweepPlan, rate: Rate, slots: Slots, extra_trials: int) -> float:
    """Return how many operations, in 10^15, each trial can take so that all end within `sweep.max_minutes`.

    All trials are taken to be as slow as the most expensive one.

    Raises:
        ConfigError: There is no time to train in.
    """
    sweep = plan.sweep
    assert sweep.max_minutes is not None, "the schema asks for it"
    # Extra trials begin after the last one of the search has ended.
    rounds = math.ceil(sweep.num_trials / slots.count) + math.ceil(extra_trials / slots.count)
    seconds = SHARE_OF_TIME * 60 * sweep.max_minutes / rounds
    num_val = len(load_splits(plan.base.data).val)
    validation = plan.base.trainer.max_epochs * num_val * rate.forward
    pflop = (seconds * rate.images_per_second * rate.step - validation) / 1e15
    if pflop <= 0:
        raise ConfigError(
            f"sweep.compute_per_trial=auto: {seconds:.0f} s a trial (sweep.max_minutes="
            f"{sweep.max_minutes:g}, {rounds} trials one after another) do not even validate "
            f"{plan.base.trainer.max_epochs} times: raise sweep.max_minutes or lower sweep.num_trials"
        )
    return float(f"{pflop:.3g}")


def measured_rate(plan: SweepPlan, slots: Slots) -> Rate:
    """Return the speed of the sweep's most expensive run on this machine, measured unless it is known.

    Raises:
        ConfigError: Trials run elsewhere, or the step cannot be measured.
    """
    from harness.training.flops import count_forward_flops, count_heaviest_step

    if plan.sweep.executor.kind != "local":
        raise ConfigError(
            "sweep.compute_per_trial=auto measures this machine, but "
            f"sweep.executor.kind={plan.sweep.executor.kind} trains elsewhere: give the PFLOP of a trial"
        )
    run = heaviest_run(plan)
    known = next((m for m in slots.measured if m.slots == slots.count), None)
    # On GPUs each trial has its own, so that one alone shows the speed.
    together = 1 if slots.num_gpus else slots.count
    measured = known or measure_together(case_of(run), Candidate(together, slots.threads))
    if measured is None:
        raise ConfigError(
            "sweep.compute_per_trial=auto: a training step of the most expensive trial could not be measured "
            "(out of memory?): give the PFLOP of a trial"
        )
    num_classes = len(load_splits(run.data).class_names)
    step = count_heaviest_step(run, num_classes)  # what was measured: without cached activations
    per_slot = measured.images_per_second / measured.slots
    return Rate(per_slot, step, count_forward_flops(run, num_classes))


# ── in words ──────────────────────────────────────────────────────────────────────────────────────


def arm_lengths(plan: SweepPlan, pflop: float) -> dict[str, list[TrialLength]]:
    """Return the lengths of the trials of each arm, at the low and the high end of its ranges.

    Raises:
        ConfigError: An arm cannot take a batch in each epoch.
    """
    return {
        arm: [trial_length(run, pflop, plan.sweep.max_passes) for run in runs]
        for arm, runs in corner_runs(plan).items()
    }


def describe_compute(plan: SweepPlan, pflop: float | None) -> list[str]:
    """Return lines on how long each arm trains, and which arms stop earlier; none if not equalised.

    Args:
        pflop: Of each trial; None: not known yet.
    """
    if plan.sweep.compute_per_trial is None:
        return []
    cap = describe_cap(plan.sweep.max_passes, plan.base.trainer.max_epochs)
    if pflop is None:
        return [f"auto: from sweep.max_minutes and the speed measured at the start; at most {cap}"]
    lengths = arm_lengths(plan, pflop)
    lines = [
        f"{pflop:.3g} PFLOP each: " + ", ".join(f"{arm} {_images(found)}" for arm, found in lengths.items())
    ]
    for arm, found in lengths.items():
        shares = [length.share for length in found if length.share < STOPPED]
        if shares:
            lines.append(f"{arm}: stopped at {cap}, {span(shares, '.0%')} of that compute")
    return lines


def _images(lengths: list[TrialLength]) -> str:
    images = span([length.num_images for length in lengths], ",.0f")
    return f"{images} images ({span([length.passes for length in lengths], '.2g')} passes)"
