"""Optuna's database as sweeps use it: opened, retried, locked and queried. It knows nothing of sweeps.

    storage.py            the database's address, and how it is opened
    retrying_storage.py   Optuna's storage with retries and transactions
    locks.py              locks in a server or beside a file
    optuna_private.py     Optuna's private names, each behind a function of ours
    optuna_tables.py      our queries on the tables of Optuna's database
    first_objective.py    a view of the database for pruners

Read `storage.py` first. The names of the attributes that sweeps keep here stand in `study/keys.py`.
"""
