"""Shows and records a sweep for people; nothing here decides anything.

    messages.py      what a call prints before and after its trials
    progress.py      what it shows meanwhile: a live table, or lines
    leaderboard.py   the trials side by side: table, CSV, pictures
    pareto.py        the front of two objectives
    status.py        `sweep list` and `--status`, from any terminal
    parent_run.py    the sweep's own run in MLflow, and `sweep.json`
    description.py   the text on that run's page

Read `parent_run.py` for MLflow, `messages.py` for the terminal.
"""
