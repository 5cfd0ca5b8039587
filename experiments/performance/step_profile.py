"""Profiles one training step with torch's profiler."""

from __future__ import annotations

from typing import Any

from torch.profiler import ProfilerActivity, profile

from experiments.performance.training import set_up

WARM_UP_STEPS, PROFILED_STEPS, TOP = 2, 3, 12


def profile_step(overrides: list[str]) -> dict[str, Any]:
    """Return a step's CPU time, and the operators that take most of it with their shares, largest first.

    The step has the harness's input pipeline, `auto` precision and memory layout, but is not run by
    Lightning, whose overhead a row of the table measures.
    """
    setup = set_up(overrides, channels_last=True)
    step, batches = setup.build_step(), setup.endless_batches()
    for _ in range(WARM_UP_STEPS):
        step(*next(batches))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED_STEPS):
            step(*next(batches))
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    largest = sorted(events, key=lambda event: event.self_cpu_time_total, reverse=True)[:TOP]
    return {
        "step_seconds": total / PROFILED_STEPS / 1e6,
        "operators": [
            {
                "name": event.key,
                "share": event.self_cpu_time_total / total,
                "calls": round(event.count / PROFILED_STEPS),
            }
            for event in largest
        ],
    }
