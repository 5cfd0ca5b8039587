"""A sweep's Optuna study, which stores everything that a later call needs to continue the sweep.

    keys.py       every user attribute that we keep in the database
    trials.py     a study's trials as plain rows; finds, creates and loads a study
    locate.py     where a plan's sweep is: name, folder, database, the coordinator's lock
    identity.py   whether a call may continue the sweep of its name: same settings, same code
    extend.py     `--extend`: a larger space or further constraints

Read `trials.py` and `keys.py` first, and `harness/search/database` for the database itself.
"""
