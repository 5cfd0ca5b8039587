"""Imported by the fork server after everything else: work that each trial would otherwise repeat.

Nothing here may start a thread, open a file for long, or touch a device: forks inherit it.
"""

from __future__ import annotations

from sqlalchemy.orm import configure_mappers

configure_mappers()  # of Optuna's and MLflow's tables, half a second
