"""The sweep in its database, from which every call continues.

    keys.py               every user attribute that we keep in the database
    trials.py             a study's trials as plain rows; finds, creates and loads a study
    locate.py             where a plan's sweep is: name, folder, database, the coordinator's lock
    identity.py           whether a call may continue the sweep of its name: same settings, same code
    extend.py             `--extend`: a larger space or further constraints
    storage.py            the database's address, and how it is opened
    retrying_storage.py   Optuna's storage with retries and transactions
    locks.py              locks in a server or beside a file
    optuna_private.py     Optuna's private names, each behind a function of ours
    optuna_tables.py      our queries on the tables of Optuna's database
    first_objective.py    a view of the database for pruners

Read `trials.py` and `keys.py` first.
"""
