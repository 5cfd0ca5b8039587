"""Executors start trials: for each, a process that runs `trial.run.run(SPEC)`, here or on a cluster.

On this machine the process is forked; on a cluster it is `python -m harness.search.trial SPEC`.

To add an executor, write a class that has the methods of `base.Executor`, give it a section in
`harness/config/executor.py`, and name it in `build.py`. `tests/contracts/test_executor.py` tests every one.

    base.py            the interface: Executor, Placement
    build.py           builds the executor that `sweep.executor` names
    local.py           processes of this machine, from a fork server that has imported everything
    ray.py, slurm.py   clusters
    child_process.py   runs a trial as a child of a Ray actor or a Slurm job
    cluster.py         how many trials a cluster runs at a time, and the resources of each
    preload.py         what the fork server imports and prepares before it forks
"""
