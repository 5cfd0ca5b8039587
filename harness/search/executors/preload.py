"""Imported by the fork server after everything else: work that each trial would otherwise repeat.

Nothing here may start a thread, open a file for long, or touch a device: forks inherit it.
"""

from __future__ import annotations

import contextlib

import torch
from sqlalchemy.orm import configure_mappers

from harness.config.compose import compose_run
from harness.errors import HarnessError
from harness.models import build_model
from harness.tracking.environment import loaded_code

loaded_code()
configure_mappers()  # of Optuna's and MLflow's tables, half a second
# What the first use of Hydra, torch and timm looks up. A wrong configs/run.yaml is the sweep's to report.
with contextlib.suppress(HarnessError), torch.device("meta"):
    build_model(compose_run().model, num_classes=2, load_weights=False)
