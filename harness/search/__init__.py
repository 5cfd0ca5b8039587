"""Sweeps: Optuna proposes trials, processes train them, a database remembers.

    sweep.py       `harness sweep`: read this first; it calls everything below
    worker.py      `harness worker`: a further machine at work on a sweep

    coordinator/   the loop that keeps slots full, how many slots there are, when to stop, what to clean up
    executors/     where a trial's process runs: this machine, Ray, Slurm
    trial/         what happens in that process, from its spec to its result
    ownership/     which process may work on which trial: claims, leases, heartbeats
    study/         the sweep's study: its trials as rows, whose sweep it is, every attribute's name (keys.py)
    database/      Optuna's database: opened, retried, locked, queried
    suggest/       the space, samplers, pruners, constraints, starting points
    report/        what people see: progress, leaderboard, status, the sweep's run in MLflow

Imports among these folders go through their files; none of the folders re-exports a name.
"""
