"""What things are called in the run store: written by training and search, read by compare and export."""

from __future__ import annotations

# tags
KIND = "harness.kind"  # train | trial | sweep
SWEEP = "harness.sweep"  # the sweep's name, on the parent and on every trial
STUDY = "harness.study"  # on the parent: which sweep of that name it is
TRIAL = "harness.trial"  # the logical trial's number
CHECKPOINT = "harness.checkpoint"  # path of best.ckpt, or ...
CHECKPOINT_REMOVED = "checkpoint removed (sweep.checkpoint_gb)"  # ... what became of it
METRIC = "harness.metric"  # on a sweep's parent: what its trials are judged by, such as val/accuracy
DIRECTION = "harness.direction"  # maximize | minimize
BEST_RUN = "harness.best_run_id"  # on a sweep's parent: the run of its best trial
PRUNED = "harness.pruned"  # "true" on a run that was stopped early because it promised too little
METRIC, DIRECTION = "harness.metric", "harness.direction"  # on a sweep's parent: its objective
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # the description on a run's page, in Markdown

# metrics
EPOCH = "epoch"  # written with every epoch's batch: tells a resumed run what is already recorded
BEST_EPOCH = "best_epoch"  # 0-based
VAL_ACCURACY = "val/accuracy"

# params
TRAINABLE_PARAMETERS = "parameters.trainable"

# artifacts
CONFIG_FILE = "config.yaml"  # the configuration as it ran
