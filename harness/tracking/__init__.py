"""Runs are recorded in MLflow and read back from it; while MLflow cannot be reached, they wait on disk.

    tracker.py                    `Tracker`, the interface that training writes to
    mlflow_tracker.py             the tracker of one MLflow run
    mlflow_writes.py              the calls that write to a run in MLflow, each made from plain JSON
    spool.py                      keeps such writes on disk while the store cannot be reached
    logged_model.py, scoring.py   a checkpoint as a model that MLflow can load
    store.py                      `RunStore`: opens the store and its runs (address.py, moved.py: where it is)
    runs.py, choice.py            recorded runs, and which sweep or run is meant
    mlflow_tables.py              many recorded runs at once, from the tables of MLflow's database
    artifacts.py                  what a run has recorded as files: its per-image predictions, its code
    readings.py, environment.py   what is recorded about test readings, and about code and machine
    checkout.py                   the git checkout that the code comes from, and its code put somewhere again
    names.py                      every tag, metric and parameter that other packages read
    ui.py, ui_app.py, views.py    `harness ui`

MLflow reads its settings from the environment, some of them when it is imported. They are set below, since
Python executes this file before any module of the package imports mlflow. A variable that is already set
keeps its value.
"""

from __future__ import annotations

import os

from harness.tracking.tracker import RunStatus, Tracker

MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # no pickles are needed here, and they can run code
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # no chatter about migrations
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # each upload is one small file
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # an outage is spooled; MLflow's default would wait four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_UV_AUTO_DETECT": "false",  # a uv.lock in the current directory is not part of a model
}
for _name, _value in MLFLOW_SETTINGS.items():
    os.environ.setdefault(_name, _value)

__all__ = ["MLFLOW_SETTINGS", "RunStatus", "Tracker"]
