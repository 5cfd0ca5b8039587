"""Decides which process may work on which trial, so that no trial runs twice and none is forgotten.

    claims.py            the coordinator's side: take a trial that no process works on, release it, end it
    lease.py             the trial's side: owns it, beats, and leaves when another process has taken it over
    process_id.py        how a process is named in the database, and whether it lives

Read `claims.py` first.
"""
