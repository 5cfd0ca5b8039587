"""Shows a sweep to people and records it: on the terminal, in files and in MLflow.

    messages.py      what a command prints before and after its trials
    progress.py      what a command shows while trials run: a live table, or lines
    leaderboard.py   the ranked trials as a table, a CSV and figures
    pareto.py        the Pareto front of two objectives
    audit.py         what limits the answer, with the commands that would settle it: edges.py, arms.py,
                     effects.py make the findings of findings.py
    costs.py         what the trials cost
    html/            report.html: the sweep as one page, with charts
    status.py        `sweep list` and `--status`, from any terminal
    parent_run.py    the sweep's own run in MLflow, and `sweep.json`
    description.py   the texts on that run's page, and on the pages of its trials
    commands.py      the commands that train trials again

Read `parent_run.py` for MLflow, `messages.py` for the terminal.
"""
