"""Decides which process may work on which trial, so that no trial runs twice and none is forgotten.

    claims.py            used by the coordinator: claims a trial that no process works on, releases or ends it
    lease.py             used by the trial's process: records heartbeats, exits once another one has the trial
    process_id.py        how a process is named in the database, and whether it is alive

Read `claims.py` first.
"""
