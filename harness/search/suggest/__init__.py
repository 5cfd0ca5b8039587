"""Which values a trial tries.

To add a sampler, name its kind in `harness/config/sampling.py` and build it in `samplers.build_sampler`.

    space.py             from the configured space to one trial's overrides
    samplers.py          who proposes values
    pruners.py           who gives a trial up early
    constraints.py       what a trial costs, and whether that is too much
    starting_points.py   `sweep.enqueue`: trials to begin with
"""
