"""Opens, locks and queries Optuna's database, with retries; imports no other folder of `harness/search`.

    storage.py            the database's address, and how it is opened
    retrying_storage.py   Optuna's storage with retries and transactions
    locks.py              advisory locks of a server, or lock files beside an SQLite database
    optuna_private.py     Optuna's private names, each behind a function of ours
    optuna_tables.py      our queries on the tables of Optuna's database
    first_objective.py    a view of the database for pruners: every study has one objective

Read `storage.py` first. The names of the attributes that sweeps keep here stand in `study/keys.py`.
"""
