"""Sweeps: Optuna proposes trials, separate processes train them, and a database stores their state.

    sweep.py       `harness sweep`: read this first; it calls everything below
    worker.py      `harness worker`: a further machine runs trials of a sweep

    coordinator/   the loop that starts trials, how many run at a time, when to stop, what to clean up
    executors/     start a trial's process: on this machine, on Ray, on Slurm
    trial/         what happens in that process, from its spec to its result
    ownership/     which process may work on which trial: claims, leases, heartbeats
    study/         the sweep's study: its trials as rows, the sweep's identity, the names of all attributes
    database/      Optuna's database: opened, retried, locked, queried
    suggest/       the space, samplers, pruners, constraints, starting points
    report/        what people see: progress, leaderboard, status, the sweep's run in MLflow

Imports among these folders go through their files; none of the folders re-exports a name.
"""
