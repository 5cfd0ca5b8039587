"""A sweep's Optuna study, which stores everything that a later command needs to continue the sweep.

    keys.py       the names of all user attributes that we store
    trials.py     finds, creates and loads a study; reads its trials as plain rows
    locate.py     finds a plan's sweep: name, folder, database, study, the coordinator's lock
    identity.py   whether a command may continue an existing sweep: same settings, same code
    extend.py     `--extend`: a larger space or further constraints

Read `trials.py` and `keys.py` first, and `harness/search/database` for the database itself.
"""
