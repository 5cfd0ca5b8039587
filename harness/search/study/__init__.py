"""The sweep in its database, which is the only truth about it.

    keys.py               every attribute that the database holds
    trials.py             a study's trials as plain rows; how a study is found, made and loaded
    locate.py             where a plan's sweep lives: name, folder, database, the coordinator's lock
    identity.py           whether a namesake asks the same question with the same code
    extend.py             `--extend`: a question made larger
    storage.py            the address, and how the database is opened
    retrying_storage.py   waits for a database that is away, transactions
    locks.py              locks in a server or beside a file
    optuna_private.py     queries that go past Optuna's public interface

Read `trials.py` and `keys.py` first.
"""
