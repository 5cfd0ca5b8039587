"""Where trials run: an executor has `trial.run.run(SPEC)` called in a process of its own, and does no more.

On this machine the process is forked; on a cluster it is `python -m harness.search.trial SPEC`.

To add one, write a class that has the methods of `base.Executor`, give it a section in
`harness/config/executor.py`, and name it in `build.py`. `tests/contracts/test_executor.py` holds for each.

    base.py            the interface: Executor, Placement
    build.py           from `sweep.executor` to the executor
    local.py           processes of this machine, forked from a server that has imported everything
    ray.py, slurm.py   clusters
    child_process.py   a trial as a child of a process on a cluster's node
    cluster.py         what a cluster's node offers, as the configuration asks for it
    preload.py         what the fork server imports and calls beforehand
"""
