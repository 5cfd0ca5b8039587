"""What things are called in the run store: written by training and search, read by compare and export."""

from __future__ import annotations

# tags
KIND = "harness.kind"  # train | trial | sweep
SWEEP = "harness.sweep"  # the sweep's name, on the parent and on every trial
STUDY = "harness.study"  # on the parent: which sweep of that name it is
TRIAL = "harness.trial"  # the logical trial's number
CHECKPOINT = "harness.checkpoint"  # path of best.ckpt, or ...
CHECKPOINT_REMOVED = "checkpoint removed (sweep.checkpoint_gb)"  # ... what became of it
BEST_RUN = "harness.best_run_id"  # on a sweep's parent: its best trial's run when its last call ended
TESTED_RUN = "harness.tested_run_id"  # on a sweep's parent: whose checkpoint its test metrics are of
PRUNED = "harness.pruned"  # "true" on a run that was stopped early because it promised too little
METRIC, DIRECTION = "harness.metric", "harness.direction"  # on a sweep's parent: its objective
SPACE = "harness.space"  # on a sweep's parent: the paths that it searches, with commas between
CALLED_AT, ACTIVE_AT = "harness.called_at", "harness.active_at"  # on a parent, in seconds since 1970
OUTCOME = "harness.outcome"  # on a trial: complete | pruned | infeasible | failed, as its sweep took it
SCORE = "harness.score"  # on a complete trial: what its sweep was told, in full
CHANGED = "harness.changed."  # and a parameter: its value since the run was prolonged or moved
READING = "harness.reading."  # and when: a reading of the test split, see readings.py
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # the description on a run's page, in Markdown

# metrics
EPOCH = "epoch"  # written with every epoch's batch: tells a resumed run what is already recorded
BEST_EPOCH = "best_epoch"  # 0-based
VAL_ACCURACY = "val/accuracy"
BEST = "best/"  # before a metric's name: of the epoch that is kept, as measured in it
TRAINED_SECONDS = "trained_seconds"  # all attempts of the run together

# params
TRAINABLE_PARAMETERS = "parameters.trainable"

# artifacts
CONFIG_FILE = "config.yaml"  # the configuration as it ran
