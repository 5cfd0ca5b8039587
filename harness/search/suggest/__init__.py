"""Chooses the values that a trial tries.

To add a sampler, name its kind in `harness/config/sampling.py` and build it in `samplers.build_sampler`.

    space.py             asks Optuna for one trial's values, and checks the space before a sweep starts
    samplers.py          the sampler that proposes values
    pruners.py           the pruner that ends a poor trial early
    constraints.py       tells Optuna how far a trial's costs exceed the sweep's constraints
    starting_points.py   `sweep.enqueue`: points that are tried first
"""
