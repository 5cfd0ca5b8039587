"""Where runs are recorded and read back: MLflow, with a spool on disk for when it cannot be reached.

MLflow reads its settings from the environment, some of them at import, so they are set here: this file
is executed before any module of the package can import mlflow. What the user has set stays.
"""

from __future__ import annotations

import os

from harness.tracking.tracker import RunStatus, Tracker

MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # nothing of ours needs it, and it runs code
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # no chatter about migrations
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # of single small files
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # an outage is spooled; MLflow's default would wait four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_UV_AUTO_DETECT": "false",  # a uv.lock in the current directory is not part of a model
}
for _name, _value in MLFLOW_SETTINGS.items():
    os.environ.setdefault(_name, _value)

__all__ = ["MLFLOW_SETTINGS", "RunStatus", "Tracker"]
