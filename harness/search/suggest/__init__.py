"""Chooses the values that a trial tries.

To add a sampler, name its kind in `harness/config/sampling.py` and build it in `samplers.build_sampler`.

    space.py             from the configured space to one trial's overrides
    samplers.py          the sampler that proposes values
    pruners.py           the pruner that ends a poor trial early
    constraints.py       a trial's costs against the sweep's constraints
    starting_points.py   `sweep.enqueue`: trials to begin with
"""
