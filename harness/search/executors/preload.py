"""Does work that each trial would otherwise repeat; the fork server of `local.py` imports this file last.

Trials inherit the fork server's state, so nothing here may start a thread, keep a file open or use a device.
"""

from __future__ import annotations

import contextlib
import gc

import torch
from sqlalchemy.orm import configure_mappers

from harness.config.compose import compose_run
from harness.errors import HarnessError
from harness.models import build_model
from harness.tracking.environment import loaded_code

loaded_code()
configure_mappers()  # of Optuna's and MLflow's tables, half a second
# Build a model once: the first use of Hydra, torch and timm imports more, which trials then need not do. An
# error in configs/run.yaml is ignored here, since the sweep reports it.
with contextlib.suppress(HarnessError), torch.device("meta"):
    build_model(compose_run().model, num_classes=2, load_weights=False)
# A collection in a trial would visit, and so copy, the million objects that it shares with this server.
gc.collect()
gc.freeze()
